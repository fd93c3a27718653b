"""From files to token ids: read rows, give them one shape, write them as the model expects, cut and count.

pairs = to_pairs(read_rows(path)).items; train, held_out = split(pairs, 0.05, seed)
items, report = encode_pairs(train, Template(load_tokenizer(model_path)), max_length=512)
"""
