"""A loaded tokenizer is a map from text to ids: training and the exported copy give the same ids, for any content of its file."""

import json
import os
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from emergence_train.convert.hf_export import export_tokenizer
from emergence_train.data import tokenizer as module
from emergence_train.data import tokenizing
from emergence_train.errors import InputError
from foreign_tokenizers import CORPUS, KINDS, byte_level, unigram

TEXTS = [
    "The quick brown fox",
    "an article about </s> and <s>, <pad> and <unk>",
    "  leading and trailing  ",
    "世界 你好 mixed Über",
    "",
    "x" * 300,
    "new\n\nlines\tand tabs",
    "unseen: ☃ 😀 ж",
]


def with_flags(tokenizer: Tokenizer) -> Tokenizer:
    """Everything that a tokenizer.json can carry beside the map itself."""
    tokenizer.enable_truncation(7)
    tokenizer.enable_padding(length=24, pad_token="<pad>", pad_id=tokenizer.token_to_id("<pad>"))
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("zz", single_word=True, lstrip=True)])
    tokenizer.add_special_tokens([AddedToken("<|im_end|>", rstrip=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("<s>", "</s>")]
    )
    return tokenizer


def written(tokenizer: Tokenizer, path: Path, **model) -> Path:
    content = json.loads(tokenizer.to_str())
    content["model"] |= model
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("flags", [False, True])
def test_the_exported_tokenizer_gives_what_was_trained_on(tmp_path, kind, flags):
    transformers = pytest.importorskip("transformers")
    bare = KINDS[kind]()
    tokenizer = with_flags(KINDS[kind]()) if flags else bare
    dropout = {"dropout": 0.5} if flags and kind in ("byte-level", "sentencepiece") else {}
    loaded = module.load_file(written(tokenizer, tmp_path / "given.json", **dropout))
    (tmp_path / "kept.json").write_text(loaded.to_str())
    again = module.load_file(tmp_path / "kept.json")
    (tmp_path / "out").mkdir()
    ids = export_tokenizer(tmp_path / "kept.json", module.end_of_text(again), tmp_path / "out", 64)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    special = {again.token_to_id(name) for name in ("<s>", "</s>", "<pad>")}
    for text in TEXTS:
        trained = again.encode(text, add_special_tokens=False).ids
        assert trained == again.encode_batch_fast([text], add_special_tokens=False)[0].ids
        assert trained == theirs(text)["input_ids"] == theirs(text, add_special_tokens=False)["input_ids"], text
        assert not special & set(trained), text
    assert len(again.encode("x " * 200, add_special_tokens=False).ids) >= 200
    assert theirs.pad_token == "<pad>" and ids["pad_token_id"] == theirs.pad_token_id
    assert ids["eos_token_id"] == theirs.eos_token_id == again.token_to_id("</s>")
    if not flags:  # nothing else has been changed
        text = "The quick brown fox, 42."
        assert bare.encode(text, add_special_tokens=False).ids == again.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("kind", KINDS)
def test_a_normalised_tokenizer_stays_as_it_is(kind):
    """Its fingerprint is what runs and data are compared by. Unknown characters become <unk>, bytes <0x30>, cut or not."""
    first = module.normalised(KINDS[kind]().to_str(), "</s>").to_str()
    assert module.normalised(first, "</s>").to_str() == first


def test_special_tokens_in_a_text_stay_text(tmp_path):
    trained = module.train(iter(["text about the token <|endoftext|> and more"] * 9), 300)
    end = module.end_of_text(trained)
    trained.save(str(tmp_path / "t.json"))
    for tokenizer in (trained, module.load_file(tmp_path / "t.json")):
        ids = tokenizer.encode("a <|endoftext|> b", add_special_tokens=False).ids
        assert end not in ids and tokenizer.decode(ids) == "a <|endoftext|> b"


def test_the_greatest_id_decides_the_size():
    content = json.loads(byte_level().to_str())
    content["added_tokens"].append(content["added_tokens"][0] | {"id": 70_000, "content": "<|far|>"})
    tokenizer = module.normalised(json.dumps(content))
    if tokenizer.token_to_id("<|far|>") is not None:
        assert module.size(tokenizer) == tokenizer.token_to_id("<|far|>") + 1
    holes = models.WordLevel({"a": 0, "b": 65_600, "<unk>": 3}, unk_token="<unk>")
    assert module.size(module.normalised(Tokenizer(holes).to_str())) == 65_601


def test_unknown_is_found_for_each_kind():
    for kind, make in KINDS.items():
        tokenizer = module.normalised(make().to_str())
        wanted = None if kind == "byte-level" else tokenizer.token_to_id("<unk>")
        assert module.unknown(tokenizer) == wanted, kind


def test_the_end_of_text_can_be_named():
    tokenizer = with_flags(unigram())
    assert module.end_of_text(tokenizer) == tokenizer.token_to_id("</s>")
    assert module.end_of_text(tokenizer, "<|im_end|>") == tokenizer.token_to_id("<|im_end|>")
    with pytest.raises(InputError, match="no token '<stop>'; give data.tokenizer.end_of_text"):
        module.end_of_text(tokenizer, "<stop>")
    with pytest.raises(InputError, match="name its own in data.tokenizer.end_of_text"):
        module.end_of_text(Tokenizer(models.BPE()))


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=60)
@given(text=st.text(alphabet="ab é你😀\n ", max_size=40), cut=st.floats(0, 1))
def test_bytes_of_consecutive_tokens_are_those_of_the_text(kind, text, cut):
    """They add up over any cut, never exceed the text, and reach its last token's end."""
    tokenizer = _cached(kind)
    encoding = tokenizer.encode(text, add_special_tokens=False)
    ends = module.byte_ends(text, encoding.offsets)
    total = len(text.encode())
    assert len(ends) == len(encoding.ids) and ends == sorted(ends) and all(0 <= end <= total for end in ends)
    if ends and kind in ("byte-level", "sentencepiece"):  # these drop nothing
        assert ends[-1] == total


_made: dict = {}


def _cached(kind: str) -> Tokenizer:
    return _made.setdefault(kind, module.normalised(KINDS[kind]().to_str()))


def test_a_character_that_tokens_share_is_counted_once():
    tokenizer = module.train(iter(["plain english text only"] * 20), 270)
    text = "ab你好"
    encoding = tokenizer.encode(text)
    assert len(encoding.ids) == 8  # three bytes a character, no merges learnt for them
    assert module.byte_ends(text, encoding.offsets) == [1, 2, 5, 5, 5, 8, 8, 8]


@pytest.mark.parametrize("run", ["=" * 400_000, "aGVsbG8" * 60_000, " " * 400_000, "字" * 200_000])
def test_training_is_linear_in_long_runs(run):
    """Quadratic training took minutes; the limit is some twenty times the present duration."""
    import time

    began = time.process_time()
    module.train(iter([run, "some words", *["more words here"] * 50]), 300)
    assert time.process_time() - began < 20


def test_ordinary_text_is_learnt_from_as_it_is():
    plain = tokenizers.Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=350,
        special_tokens=[module.END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    plain.train_from_iterator(CORPUS, trainer)
    assert module.train(iter(CORPUS), 350).get_vocab() == plain.get_vocab()


def test_invalid_tokenizer_is_one_error_line(tmp_path):
    for content in ("{}", "[]", "not json", ""):
        (tmp_path / "t.json").write_text(content)
        with pytest.raises(InputError, match="not a tokenizer.json") as error:
            module.load_file(tmp_path / "t.json")
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="no such file"):
        module.load_file(tmp_path / "missing.json")


def test_a_regular_expression_that_never_ends_is_one_line(tmp_path, capfd):
    """The library panics in Rust: no Exception in Python, and a trace on the standard error."""
    content = json.loads(module.train(iter(["hello world " * 50]), 300).to_str())
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content | {"pre_tokenizer": split}))
    tokenizing._load(tmp_path / "tokenizer.json")
    with pytest.raises(InputError, match="tokenizer.json: cannot encode this text"):
        tokenizing._encode(["a" * 40 + "b"], 0.0)
    os.write(2, b"what others write stays\n")
    assert capfd.readouterr().err == "what others write stays\n"
    assert len(tokenizing._encode(["abc"], 0.0).rows) == 1


def test_other_output_on_the_standard_error_is_kept(capfd):
    with module.panics_as_input_errors("t"):
        os.write(2, b"a warning\n")
    assert capfd.readouterr().err == "a warning\n"
    with pytest.raises(KeyError), module.panics_as_input_errors("t"):
        raise KeyError("an error of another kind")


def test_a_fingerprint_of_no_tokenizer_is_one_line(tmp_path):
    (tmp_path / "tokenizer.json").touch()
    with pytest.raises(InputError, match=r"tokenizer .*tokenizer\.json: not a tokenizer\.json: EOF"):
        module.fingerprint(tmp_path / "tokenizer.json")
