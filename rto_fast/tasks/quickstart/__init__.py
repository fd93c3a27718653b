"""The embedded task: short questions about animals, answers of known quality per token, made by code from a seed.

`grammar` asks and answers, `oracle` scores every token in closed form, `tokenizer` and `task` write the files that the
pipeline reads. Nothing is downloaded.
"""
