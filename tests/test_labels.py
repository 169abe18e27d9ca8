"""Label spaces, what leaks between names, and the vectors of labels against the packaged CLIP called directly."""

import numpy as np
import open_clip
import pytest
import torch

from clipdec import LabelSpace, encode_labels
from clipdec.labels import join_names, leakage
from clipdec.towers import MINI, load_label_embeddings
from data_prep.names import SPLITS, read_names

TWINS = {  # kind: unseen and seen names
    "plural": "cat:cats, flowers:flower, bus:buses, berry:berries, leaf:leaves, knife:knives, horses:horse, Cat:CATS, "
    "traffic light:traffic lights, hot-dog:hot dogs, boss:bosses, bas:bass, news:new, cat !:cats",
    "lemma": "running:run, person:people, man:men, fish:fishing, T-shirt:t shirt",
    "word": "tiger:tiger face, police officer:officer, mountain:sunrise over mountains",
    "": "plane:airplane, train:rain, person running:person swimming, hot dog:hot tub, zebra:horse, "
    "-:cat, cat:-, -:_ -, !?:?!",
}
NAMES = ["pizza", "dog face", "flag: Japan"]
close = lambda a, b: torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_seen_labels_come_first():
    labels = LabelSpace(["b", "a"], ["d", "c", "e"])
    assert labels.names == ["b", "a", "d", "c", "e"]
    assert labels.seen_index.tolist() == [0, 1] and labels.unseen_index.tolist() == [2, 3, 4]
    assert [labels.names[i] for i in labels.unseen_index] == labels.unseen
    assert [labels.kind(name) for name in ("a", "e", "E", "f")] == ["seen", "unseen", "new", "new"]


def test_one_part_may_be_empty():
    seen, unseen = LabelSpace(["a", "b"], []), LabelSpace([], ["a"])
    assert seen.names == ["a", "b"] and seen.unseen_index.tolist() == [] and unseen.unseen_index.tolist() == [0]


@pytest.mark.parametrize("seen, unseen, message", [
    (["a", ""], ["b"], "label 1 of the seen labels is empty"), (["a"], ["  "], "label 0 of the unseen labels is empty"),
    (["a", None], ["b"], "label 1 of the seen labels is empty"),
    (["a", "b", "a"], ["c"], "repeated among the seen labels: a"),
    (["a"], ["c", "d", "d", "c"], "repeated among the unseen labels: c, d"),
    (["a", "b", "c"], ["c", "d", "a"], "both seen and unseen: a, c"),
])
def test_label_space_errors(seen, unseen, message):
    with pytest.raises(ValueError, match=message):
        LabelSpace(seen, unseen)


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


def test_embeddings_come_in_the_order_asked_for(tmp_path):
    rows = 3 * np.random.default_rng(0).standard_normal((3, 5))
    np.savez(tmp_path / "e.npz", names=np.array(["a", "b", "c"]), vectors=rows)
    vectors = load_label_embeddings(tmp_path / "e.npz", ["c", "a"])
    expected = rows[[2, 0]] / np.linalg.norm(rows[[2, 0]], axis=1, keepdims=True)
    assert vectors.dtype == torch.float32 and vectors.numpy() == pytest.approx(expected, rel=1e-7, abs=1e-6)


def test_embeddings_that_lack_a_name(tmp_path):
    np.savez(tmp_path / "e.npz", names=np.array(["a", "b"]), vectors=np.ones((2, 5)))
    with pytest.raises(ValueError, match="no vector for 2 labels: x, y"):
        load_label_embeddings(tmp_path / "e.npz", ["x", "a", "y"])


def test_files_that_are_no_embeddings(tmp_path):
    class Trap:  # writes a file when it is unpickled
        def __reduce__(self):
            return open, (str(tmp_path / "sprung"), "w")
    np.savez(tmp_path / "no_vectors.npz", names=np.array(["a"]))
    np.savez(tmp_path / "shape.npz", names=np.array(["a", "b"]), vectors=np.ones((3, 5)))
    np.savez(tmp_path / "flat.npz", names=np.array(["a", "b"]), vectors=np.ones(2))
    np.savez(tmp_path / "pickled.npz", names=np.array(["a", Trap()], dtype=object), vectors=np.ones((2, 5)))
    np.save(tmp_path / "array.npy", np.ones((2, 5)))
    (tmp_path / "text.npz").write_text("a 0.1 0.2")
    (tmp_path / "empty.npz").touch()
    whole = (tmp_path / "shape.npz").read_bytes()
    (tmp_path / "truncated.npz").write_bytes(whole[: len(whole) // 2])
    for path in [*tmp_path.iterdir(), tmp_path / "missing.npz"]:
        with pytest.raises(ValueError, match=f"label_embeddings .*{path.name}"):
            load_label_embeddings(path, ["a"])
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("pair, kind", [(pair, kind) for kind, pairs in TWINS.items() for pair in pairs.split(", ")])
def test_leakage_names_the_twins(pair, kind):
    unseen, seen = pair.split(":")
    assert leakage(LabelSpace([seen, "violin"], [unseen])) == ({unseen: [(seen, kind)]} if kind else {})


def test_nus_wide_has_31_plural_twins():
    labels = LabelSpace(*(read_names(SPLITS / f"nus_wide_{part}.txt")[0] for part in ("seen925", "unseen81")))
    plural = {name: seen for name, found in leakage(labels).items() for seen, kind in found if kind == "plural"}
    some = {"cat": "cats", "bear": "bears", "flowers": "flower", "leaf": "leaves", "valley": "valleys"}
    assert len(plural) == 31 and some.items() <= plural.items()
