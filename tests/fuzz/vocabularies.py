"""Malformed tokenizers and chat templates."""

from tests.fuzz.place import Case, Content, Place


def _file(name: str, file: str, content: Content, *says: str) -> Case:
    key = file.replace(".", "__")
    return Case(f"{file}: {name}", lambda place: place.model(**{key: content}), says)


def _changed(name: str, file: str, change, *says: str) -> Case:
    """A tokenizer's JSON file changed in place by change(content)."""

    def make(place: Place) -> list[str]:
        content = place.changed(file)
        change(content)
        return place.model(**{file.replace(".", "__"): content})

    return Case(f"{file}: {name}", make, says)


def _double(text: str) -> dict:
    return {"type": "Replace", "pattern": {"String": text}, "content": text * 2}


def _each(name: str, step: dict) -> dict:
    """Twelve times the same step, each on what the one before has made."""
    return {"type": "Sequence", name: [step] * 12}


def tokenizers() -> list[Case]:
    file, field = "tokenizer.json", "model.path: no tokenizer can be loaded"

    def model(**values):
        return lambda content: content["model"].update(values)

    def content(**values):
        return lambda content: content.update(values)

    def vocabulary(**words):
        return lambda content: content["model"]["vocab"].update(words)

    def added(**values):
        return lambda content: content["added_tokens"][0].update(values)

    grown = (field, file, "characters or tokens of")
    grows = (field, file, "4,096 characters of one")
    insert = {"type": "Replace", "pattern": {"Regex": ""}, "content": "x"}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    exponential = {
        "type": "Split",
        "pattern": {"Regex": "(\\w+\\s?)+$|x"},
        "behavior": "Isolated",
        "invert": False,
    }
    bpe = {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "x"]]}
    deep = {"type": "Sequence", "normalizers": []}
    for _ in range(300):
        deep = {"type": "Sequence", "normalizers": [deep]}
    return [
        _file("empty", file, "", field),
        _file("cut", file, '{"version": "1.0", "model": {', field),
        _file("a list", file, [], field),
        _file("a string", file, '"x"', field),
        _file("empty object", file, {}, field),
        _file("not UTF-8", file, b"\xff\xfe{}", field),
        _file("nested", file, '{"model":' * 100_000, field),
        _file("model of a list", file, {"model": []}, field),
        _file("model without a type", file, {"model": {}}, field),
        _file("model of an unknown type", file, {"model": {"type": "Evil", "vocab": {}}}, field),
        _file("merges of absent words", file, {"version": "1.0", "added_tokens": [], "model": bpe}, field),
        _file("number of 10,000 digits", file, '{"model": {"type": "BPE", "vocab": {"a": ' + "9" * 9999 + "}}}", field),
        _changed("negative id", file, vocabulary(cat=-1), field),
        _changed("id of 2^40", file, vocabulary(cat=2**40), field),
        _changed("id beyond the embedding", file, vocabulary(cat=4_000_000_000), "model.path", "vocab"),
        _changed(
            "id that would fill the memory", file, vocabulary(cat=2**31 - 1), field, file, "'cat' the id 2147483647"
        ),
        _changed("added id that would fill the memory", file, added(id=2**31 - 1), field, file, "the id 2147483647"),
        _file("id that would fill the memory", "vocab.json", {"cat": 2**31 - 1}, field, "vocab.json", "at most 16,777"),
        _file("id that would fill it", "added_tokens.json", {"cat": 2**31 - 1}, field, "added_tokens.json", "at most"),
        _changed(
            "normalizers that double a letter", file, content(normalizer=_each("normalizers", _double("e"))), *grows
        ),
        _changed(
            "normalizers that double a sign", file, content(normalizer=_each("normalizers", _double("☃"))), *grows
        ),
        _changed("normalizers that insert", file, content(normalizer=_each("normalizers", insert)), *grows),
        _changed("bytes of bytes of bytes", file, content(pre_tokenizer=_each("pretokenizers", bytes_)), *grown),
        _changed("decoders that double a letter", file, content(decoder=_each("decoders", _double("k"))), *grows),
        _changed(
            "a pattern of exponential time", file, content(pre_tokenizer=exponential), field, file, "cannot be used"
        ),
        _changed("id just beyond the embedding", file, vocabulary(cat=28), "model.path", "vocab"),
        _changed("id of a string", file, vocabulary(cat="five"), field),
        _changed("vocabulary of a list", file, model(vocab=["a"]), field),
        _changed("unknown token absent", file, model(unk_token="<no>"), "model.path"),
        _changed("version unknown", file, content(version="99"), field),
        _changed("added token without an id", file, lambda c: c["added_tokens"][0].pop("id"), field),
        _changed("added token with id -1", file, added(id=-1), field),
        _changed("added tokens of numbers", file, content(added_tokens=[1, 2]), field),
        _changed("normalizer unknown", file, content(normalizer={"type": "Evil"}), field),
        _changed("normalizer nested", file, content(normalizer=deep), field),
        _changed(
            "broken pattern",
            file,
            content(
                pre_tokenizer={"type": "Split", "pattern": {"Regex": "(((("}, "behavior": "Isolated", "invert": False}
            ),
            field,
        ),
        _changed(
            "post-processor of absent words",
            file,
            content(post_processor={"type": "BertProcessing", "sep": ["[SEP]", 10**10], "cls": ["[CLS]", 7]}),
            field,
        ),
        _changed("decoder of a number", file, content(decoder=5), field),
    ]


def settings() -> list[Case]:
    file = "tokenizer_config.json"

    def set_(**values):
        return lambda content: content.update(values)

    def touch(place: Place) -> list[str]:
        code = "from pathlib import Path\nPath(__file__).with_name('OWNED').touch()\nPath('OWNED').touch()\n"
        settings = place.changed(file, tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})
        return place.model(tokenizer_config__json=settings, evil__py=code)

    return [
        _file("empty", file, "", "model.path", file),
        _file("a list", file, "[]", "model.path", file),
        _file("not JSON", file, "{'a'", "model.path", file),
        _file("nested", file, '{"a":' * 100_000, "model.path", file),
        _changed("class of a number", file, set_(tokenizer_class=5), "model.path"),
        Case(f"{file}: code of its own", touch, ("model.path", "--model.trust-remote-code")),
        _changed("no end token", file, lambda c: c.pop("eos_token"), "no EOS token", "eos_token"),
        _changed("end token null", file, set_(eos_token=None), "no EOS token"),
        _changed("end token of a number", file, set_(eos_token=5), "model.path"),
        _changed("end token of a list", file, set_(eos_token=["<eos>"]), "model.path"),
        _changed("end token of an empty object", file, set_(eos_token={}), "model.path"),
        _changed("end token that is new", file, set_(eos_token="<new>"), "model.path", "vocab"),
        _changed("start token that is new", file, set_(bos_token="<new>"), "model.path", "vocab"),
        _changed("added tokens of a list", file, set_(added_tokens_decoder=[1]), "model.path"),
        _changed("added tokens by name", file, set_(added_tokens_decoder={"x": {"content": "a"}}), "model.path"),
        _changed("longest text of a string", file, set_(model_max_length="long"), "model.path"),
    ]


def templates() -> list[Case]:
    """Chat templates; the run asks for them with --data.template chat."""

    def template(name: str, text: object, *says: str, chat: bool = True) -> Case:
        def make(place: Place) -> list[str]:
            settings = place.changed("tokenizer_config.json", chat_template=text)
            style = ["--data.template", "chat"] if chat else ["--data.template", "auto"]
            return [*place.model(tokenizer_config__json=settings), *style]

        return Case(f"chat template: {name}", make, ("chat template", *says))

    body = "{% for m in messages %}{{ m.content }}{% endfor %}"
    many = "{% for i in range(99999) %}"
    return [
        Case("chat template: none", lambda p: ["--data.template", "chat"], ("data.template", "use 'plain' or 'auto'")),
        template("syntax error", "{% for m in messages %}{{ m.content }}"),
        template("unknown tag", "{% evil %}" + body),
        template("unknown filter", "{{ messages | evil }}"),
        template("unknown function", "{{ evil() }}"),
        template("include of a file", "{% include '/etc/passwd' %}" + body),
        template("import of a file", "{% import '/etc/passwd' as p %}" + body),
        template("extends a file", "{% extends 'base.html' %}"),
        template("__class__", "{{ ''.__class__.__mro__[1].__subclasses__() }}" + body),
        template("__globals__", "{{ raise_exception.__globals__.os }}" + body),
        template("__init__ of the loop", "{{ cycler.__init__.__globals__.os.system('true') }}" + body),
        template("attr filter", "{{ (''|attr('__class__')).mro() }}" + body),
        template("format string", "{{ '{0.__class__.__mro__}'.format(messages) }}" + body),
        template("changes the messages", "{% set _ = messages.append(1) %}" + body),
        template("clears the messages", "{{ messages.clear() }}" + body),
        template("range too long", "{% for i in range(10**9) %}{% endfor %}" + body),
        template("loops in loops", many * 4 + "{% endfor %}" * 4 + body),
        template("loops that write", many + many + "xxxxxxxxxx" + "{% endfor %}{% endfor %}" + body),
        template("power of a power", "{{ 10 ** (10 ** 10) }}" + body),
        template("long text", "{{ 'a' * 10 ** 12 }}" + body),
        template(
            "text that doubles",
            "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}" + body,
        ),
        template("a wide field", "{{ '%999999999999d' % 1 }}" + body),
        template("a centred text", "{{ 'a'.center(10 ** 12) }}" + body),
        template("recursive macro", "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}" + body),
        template("recursive loop", "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}"),
        template("divides by zero", "{{ 1 / 0 }}" + body),
        template("adds a number to a text", "{{ 'a' + 1 }}" + body),
        template("key that is absent", "{% for m in messages %}{{ m['no']['no'] }}{% endfor %}"),
        template("refuses all", "{{ raise_exception('never this one') }}", "never this one"),
        template("refuses with escapes", "{{ raise_exception('\x1b]0;owned\x07') }}", "\\x1b"),
        template("refuses with a long text", "{{ raise_exception('no ' * 10000) }}"),
        template("writes nothing", "{# nothing #}", "writes nothing"),
        template("drops the question", "it is {% if add_generation_prompt %}so{% endif %}", "drops words of the user"),
        template(
            "cuts the question",
            "{% for m in messages %}{{ m.content[:200] }}{% endfor %}",
            "drops words of the user ('qqword1",
            "--data.template plain",
        ),
        template("of a number", 5),
        template("of an object", {"a": "b"}),
        Case(
            "chat template: of a list of numbers",
            lambda p: p.model(tokenizer_config__json=p.changed("tokenizer_config.json", chat_template=[1, 2])),
            ("model.path",),
        ),
        template("several, none of them the default", [{"name": "x", "template": body}]),
        template("half a surrogate", "\ud800" + body),
        template("nested parentheses", "{{ " + "(" * 2000 + "1" + ")" * 2000 + " }}" + body),
        template("nested blocks", "{% if 1 %}" * 500 + body + "{% endif %}" * 500),
        template("chosen by auto", "{{ evil() }}", chat=False),
    ]


def generation() -> list[Case]:
    file = "generation_config.json"
    return [
        _file("a list", file, "[]", "model.path", file),
        _file("not JSON", file, "{", "model.path", file),
        _file("end token of a string", file, {"eos_token_id": "end"}, "model.path", "eos_token_id"),
        _file("end token of a list of lists", file, {"eos_token_id": [[2]]}, "model.path", "eos_token_id"),
        _file("end token negative", file, {"eos_token_id": -4}, "model.path", "eos_token_id"),
    ]


def cases() -> list[Case]:
    return tokenizers() + settings() + templates() + generation()
