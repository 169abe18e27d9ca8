"""Names and how they are compared, label spaces, and label vectors against the packaged CLIP called directly."""

import unicodedata

import open_clip
import pytest
import torch

from clipdec import LabelSpace, encode_labels
from clipdec.labels import clean_name, join_names, read_names, read_text, same_name
from clipdec.towers import MINI

NAMES = ["pizza", "dog face", "flag: Japan"]
close = lambda a, b: torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_seen_labels_come_first():
    labels = LabelSpace(["b", "a"], ["d", "c", "e"])
    assert labels.names == ["b", "a", "d", "c", "e"]
    assert labels.seen_index.tolist() == [0, 1] and labels.unseen_index.tolist() == [2, 3, 4]
    assert [labels.names[i] for i in labels.unseen_index] == labels.unseen
    assert [labels.kind(name) for name in ("a", "e", " E", "f")] == ["seen", "unseen", "unseen", "new"]


def test_one_part_may_be_empty():
    seen, unseen = LabelSpace(["a", "b"], []), LabelSpace([], ["a"])
    assert seen.names == ["a", "b"] and seen.unseen_index.tolist() == [] and unseen.unseen_index.tolist() == [0]


SPELLINGS = ["Café au lait", " cafe\u0301  AU\u00a0lait", "café\tau\u200b lait\n", "CAFÉ AU LAIT"]


def test_one_name_in_many_spellings():
    assert {same_name(name) for name in SPELLINGS} == {"café au lait"}
    assert [clean_name(name) for name in SPELLINGS[:3]] == ["Café au lait", "café AU lait", "café au lait"]
    assert same_name("STRASSE") == same_name("Straße") and same_name("cat") != same_name("cats")
    assert same_name("\u1e9b\u0323") == same_name(unicodedata.normalize("NFD", "\u1e9b\u0323"))


@pytest.mark.parametrize("seen, unseen, message", [
    (["a", ""], ["b"], "label 1 of the seen labels, '', is no name"), (["a"], ["  "], "label 0 of the unseen labels"),
    (["a", None], ["b"], "label 1 of the seen labels, None, is no name"), (["a", "NaN"], [], "label 1 of the seen"),
    (["a", "b", "a"], ["c"], "repeated among the seen labels: a: "), (["-"], [], "label 0 of the seen labels, '-'"),
    (["a"], ["c", "d", "d"], "repeated among the unseen labels: d: "),
    (["a", "b", "c"], ["d", "b"], "both seen and unseen: b: "),
    (["x", SPELLINGS[0]], [SPELLINGS[1]], "both seen and unseen: ' cafe.*' and 'Café au lait'"),
    ([*SPELLINGS[2:]], [], "repeated among the seen labels: 'CAFÉ AU LAIT' and 'café"),
])
def test_label_space_errors(seen, unseen, message):
    with pytest.raises(ValueError, match=message):
        LabelSpace(seen, unseen)


def test_marks_of_direction_make_no_other_label_and_joiners_do():
    marks = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    assert clean_name(f"{marks}dog{marks}") == "dog"
    with pytest.raises(ValueError, match="both seen and unseen: .* and 'dog'"):
        LabelSpace(["dog"], ["dog\u202c"])
    joined = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\U0001f469\u200d\U0001f680"
    assert [clean_name(name) for name in joined] == [*joined]


@pytest.mark.parametrize("name", ["\x1b]0;owned\x07dog", "do\x00g", "dog\ud800", "a\x9bb", "\ufffe"])
def test_what_would_command_a_terminal_is_no_name(name):
    with pytest.raises(ValueError, match="label 0 of the seen labels, .* is no name"):
        LabelSpace([name], [])


def test_a_label_space_keeps_clean_names():
    labels = LabelSpace(("hot  dog", "a "), [SPELLINGS[1]])
    assert labels.names == ["hot dog", "a", "café AU lait"] and labels.kind(SPELLINGS[3]) == "unseen"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_list_files(tmp_path, encoding):
    path = tmp_path / "names.txt"
    path.write_bytes("# drinks\r\nCafé  au lait\r\n\r\ntea \r\n# animals\r\ncat".encode(encoding))
    headings = {"Café au lait": "drinks", "tea": "drinks", "cat": "animals"}
    assert read_names(path) == ([*headings], headings) and read_text(path).startswith("# drinks")


@pytest.mark.parametrize("content, message", [
    (b"\n# only a heading\n", "holds no name"), (b"cat\ndog\n\nCat\n", "line 4: 'Cat' is there already, as 'cat'"),
    (b"caf\x81", "save it as UTF-8"), (b"\xff\xfea", "save it as UTF-8"),
])
def test_list_files_that_are_none(tmp_path, content, message):
    (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(ValueError, match=f"names.txt.*{message}"):
        read_names(tmp_path / "names.txt")


@pytest.mark.parametrize("count, text", [(1, "sky"), (2, "sky and car"), (3, "sky, car and road")])
def test_join_names(count, text):
    assert join_names(["sky", "car", "road"][:count]) == text


def direct(texts):
    """Unit text vectors from open_clip itself."""
    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{MINI}")
    with torch.no_grad():
        vectors = model.eval().encode_text(open_clip.get_tokenizer(f"local-dir:{MINI}")(texts))
    return vectors / vectors.norm(dim=1, keepdim=True)


def test_encode_labels_equals_open_clip():
    vectors = encode_labels(NAMES, "mini", "a photo of {}")
    assert vectors.shape == (3, 128) and vectors.dtype == torch.float32 and not vectors.requires_grad
    close(vectors, direct([f"a photo of {n}" for n in NAMES]))
    close(vectors.norm(dim=1), torch.ones(3))
    close(encode_labels(NAMES, prompt="many {} here"), direct([f"many {n} here" for n in NAMES]))


def test_more_names_than_one_batch_keep_their_order():
    some, names = [0, 255, 256, 299], [f"thing {i}" for i in range(300)]
    close(encode_labels(names)[some], direct([f"a photo of {names[i]}" for i in some]))


def test_one_name_as_a_text():
    assert torch.equal(encode_labels("pizza"), encode_labels(["pizza"]))


def test_braces_in_a_name_stay():
    close(encode_labels(["{0} {}"]), direct(["a photo of {0} {}"]))


def test_a_changed_result_does_not_change_the_next():
    first = encode_labels(NAMES)
    kept = first.clone()
    first.zero_()
    assert torch.equal(encode_labels(NAMES), kept)
    assert not torch.allclose(encode_labels(NAMES, prompt="{}"), kept)  # the prompt is part of what is kept


WRONG = {
    "at least one name and no empty": [{"names": names} for names in ([], ["a", ""], ["a", " "], "", ["a", 3])],
    "prompt must hold {} once": [{"prompt": prompt} for prompt in ("a photo", "", "{} and {}")],
    "unknown CLIP tower": [{"text_tower": tower} for tower in ("maxi", "timm:resnet18", "open_clip:ViT-B-32", "")],
    "open_clip has no model": [{"text_tower": "open_clip:no-such-model/openai"}],
}


@pytest.mark.parametrize("message, wrong", [(message, wrong) for message, cases in WRONG.items() for wrong in cases])
def test_wrong_names_prompts_and_towers(message, wrong):
    with pytest.raises(ValueError, match=message):
        encode_labels(**{"names": NAMES} | wrong)
