"""Towers against the open_clip and timm models they wrap. All weights are packaged or random: nothing is downloaded."""

import json
import re
import shutil
from copy import deepcopy

import open_clip
import pytest
import timm
import torch
from helpers import assert_equal, outputs, timm_file
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.transforms.v2.functional import InterpolationMode, resized_crop

from clipdec.towers import MINI, ImageTower, load_clip, windows_of
from clipdec.training.inputs import tower_key

TEXT = {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}
SMALL = {  # an open_clip ResNet as RN50 is one, and a ViT with a class token, both too small to be of use
    "clipdec-test-rn": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
    "clipdec-test-vit": {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8},
}


@pytest.fixture(scope="module")
def mini():
    return ImageTower("mini")


@pytest.fixture(scope="module")
def pixels(mini):
    return torch.stack([mini.preprocess(Image.effect_noise((90, 70), sigma).convert("RGB")) for sigma in (10, 60)])


@pytest.fixture(scope="module")
def small_clips(tmp_path_factory):
    """{model name: (open_clip model with random weights, safetensors file of them)}."""
    folder, clips = tmp_path_factory.mktemp("open_clip"), {}
    for name, vision in SMALL.items():
        config = {"embed_dim": 12, "vision_cfg": vision, "text_cfg": TEXT}
        (folder / f"{name}.json").write_text(json.dumps(config))
        open_clip.add_model_config(folder)
        clips[name] = open_clip.create_model(name).eval(), folder / f"{name}.safetensors"
        save_file({k: v.contiguous() for k, v in clips[name][0].state_dict().items()}, clips[name][1])
    return clips


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """(timm model with random weights, safetensors file of them)."""
    return timm_file("resnet10t", tmp_path_factory.mktemp("resnet"))


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return timm_file("test_vit", tmp_path_factory.mktemp("vit"))


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")



def test_the_folder_loads_with_open_clip_alone():
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{MINI}")
    ids = open_clip.get_tokenizer(f"local-dir:{MINI}")(["a photo of pizza", "a photo of dog face"])
    assert ids.shape == (2, model.context_length) and not torch.equal(ids[0], ids[1])
    stored = load_file(MINI / "open_clip_model.safetensors")
    assert_equal(model.state_dict(), {name: value.float() for name, value in stored.items()})
    assert preprocess(Image.new("RGB", (50, 90))).shape == (3, 128, 128)


def test_a_folder_cannot_choose_its_tokenizer(tmp_path, monkeypatch):
    """Its settings could ask transformers to run code that lies in it."""
    folder = shutil.copytree(MINI, tmp_path / "clip")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= {"hf_tokenizer_name": "x", "tokenizer_kwargs": {"trust_remote_code": True}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    monkeypatch.setattr(open_clip.factory, "HFTokenizer", lambda *_, **__: 1 / 0)
    theirs, mini = load_clip(f"local-dir:{folder}"), load_clip("mini")
    assert torch.equal(theirs.tokenizer(["a photo of pizza"]), mini.tokenizer(["a photo of pizza"]))


def test_the_folder_is_small():
    assert sum(f.stat().st_size for f in MINI.iterdir()) <= 12_000_000


def test_mini_tokens_and_global_vector(mini, pixels):
    tokens, vectors = mini(pixels)
    assert tokens.shape == (2, 64, mini.num_features) and mini.grid == (8, 8) and vectors.shape == (2, mini.embed_dim)
    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{MINI}")
    torch.testing.assert_close(vectors, model.eval().encode_image(pixels), rtol=0, atol=1e-5)
    assert not torch.allclose(vectors.norm(dim=1), torch.ones(2), atol=1e-2)


def test_tokens_are_in_reading_order(mini, pixels):
    x = mini.trunk._embeds(pixels)
    for block in mini.trunk.transformer.resblocks:
        x = block(x)
    expected = mini.trunk.ln_post(x)[:, 1:]  # without the class token: one token a patch, row by row
    torch.testing.assert_close(mini(pixels)[0], expected, rtol=0, atol=1e-5)


def test_training_a_tower_leaves_the_clip_as_it_was(pixels):
    before = deepcopy(load_clip("mini").model.state_dict())
    tower = ImageTower("mini").train()
    optimiser = torch.optim.SGD(tower.parameters(), lr=1.0)
    tower(pixels)[1].square().sum().backward()
    optimiser.step()
    assert any(not torch.equal(v, before[f"visual.{k}"]) for k, v in tower.trunk.state_dict().items())
    assert_equal(load_clip("mini").model.state_dict(), before)


def test_a_weights_file_in_the_home_folder(small_clips, monkeypatch):
    model, path = small_clips["clipdec-test-vit"]
    monkeypatch.setenv("HOME", str(path.parent))
    monkeypatch.setenv("USERPROFILE", str(path.parent))
    assert_equal(load_clip(f"open_clip:clipdec-test-vit/~/{path.name}").model.state_dict(), model.state_dict())


@pytest.mark.parametrize("name, grid, channels", [("clipdec-test-rn", (2, 2), 256), ("clipdec-test-vit", (4, 4), 16)])
def test_open_clip_from_a_file(small_clips, name, grid, channels):
    model, path = small_clips[name]
    tower, side = ImageTower(f"open_clip:{name}/{path}"), SMALL[name]["image_size"]
    assert_equal(tower.trunk.state_dict(), model.visual.state_dict())
    x = torch.randn(3, 3, side, side)
    tokens, vectors = tower(x)
    assert tower.grid == grid and tokens.shape == (3, grid[0] * grid[1], channels) and tower.num_features == channels
    torch.testing.assert_close(vectors, model.encode_image(x), rtol=0, atol=1e-5)
    assert tower.embed_dim == 12 and not tower.training


def test_open_clip_resnet_tokens_are_the_last_feature_map(small_clips):
    model, path = small_clips["clipdec-test-rn"]
    x, v = torch.randn(2, 3, 64, 64), model.visual
    maps = v.layer4(v.layer3(v.layer2(v.layer1(v.stem(x)))))
    tokens = ImageTower(f"open_clip:clipdec-test-rn/{path}")(x)[0]
    for i, (row, column) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        torch.testing.assert_close(tokens[:, i], maps[:, :, row, column], rtol=0, atol=1e-5)


def test_open_clip_files_that_cannot_be_loaded(small_clips, tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    torch.save({"weights": Trap(tmp_path / "sprung")}, tmp_path / "pickled.pt")
    files = [tmp_path / name for name in ("broken.safetensors", "pickled.pt", "missing.pt")]
    for path in [*files, small_clips["clipdec-test-rn"][1]]:  # the last holds the weights of another model
        with pytest.raises(ValueError, match="weights of .* cannot be loaded"):
            load_clip(f"open_clip:clipdec-test-vit/{path}")
    assert not (tmp_path / "sprung").exists()


UNKNOWN = "unknown CLIP tower .* known are mini, open_clip:"


@pytest.mark.parametrize("name, weights, message", [
    ("maxi", None, UNKNOWN), ("", None, UNKNOWN), ("mini:x", None, UNKNOWN), ("open_clip:ViT-B-32", None, UNKNOWN),
    ("clip:ViT-B-32/openai", None, UNKNOWN), ("open_clip:ViT-Z-1/openai", None, "open_clip has no model 'ViT-Z-1'"),
    ("timm:no_such_net", None, "timm has no model 'no_such_net'"),
    ("mini", "x.safetensors", "image_weights is for timm towers"),
])  # fmt: skip
def test_names_that_are_refused(name, weights, message):
    with pytest.raises(ValueError, match=message):
        ImageTower(name, weights)


@pytest.mark.parametrize("name", [
    "test_vit", "resnet10t",  # a ViT with a class token, a network without one
    "mobilenetv3_small_050", "test_efficientnet",  # whose last stage is followed by a convolution
    "swin_tiny_patch4_window7_224", "hiera_tiny_224",  # channels last, tokens without a norm of intermediates
])  # fmt: skip
def test_timm_from_a_file(name, tmp_path):
    model, path = timm_file(name, tmp_path)  # with its classifier, as published weights have one
    tower = ImageTower(f"timm:{name}", path)
    x = tower.preprocess(Image.effect_noise((80, 60), 40).convert("RGB"))[None]
    tokens, vectors = tower(x)
    with torch.no_grad():
        features = model.forward_features(x)
        if features.ndim == 3:
            expected = features[:, getattr(model, "num_prefix_tokens", 0) :]
        else:
            expected = features.flatten(1, 2) if name.startswith("swin") else features.flatten(2).mT
        torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(vectors, model.forward_head(features, pre_logits=True), rtol=0, atol=1e-5)
    assert tokens.shape == (1, tower.grid[0] * tower.grid[1], tower.num_features)
    assert tower.num_features == model.num_features


def test_the_preprocessing_is_the_towers_own_and_keeps_the_whole_image(resnet):
    tower = ImageTower("timm:resnet10t", resnet[1])
    config = timm.data.resolve_model_data_config(tower.trunk)
    photo = Image.new("RGB", (400, 100), "white")
    photo.paste((255, 0, 0), (0, 0, 40, 100))  # what a centre crop would cut off
    pixels = tower.preprocess(photo)
    assert pixels.shape == config["input_size"]
    mean, std = (torch.tensor(config[k])[:, None] for k in ("mean", "std"))
    red_and_white = torch.tensor([[1.0, 1], [0, 1], [0, 1]])
    found = pixels[:, config["input_size"][1] // 2, [3, -3]]
    torch.testing.assert_close(found, (red_and_white - mean) / std, rtol=0, atol=1e-5)


def test_open_clip_keeps_the_whole_image(small_clips):
    path = small_clips["clipdec-test-vit"][1]
    photo = Image.new("RGB", (400, 100), "white")
    photo.paste((0, 0, 0), (0, 0, 40, 100))
    pixels = load_clip(f"open_clip:clipdec-test-vit/{path}").preprocess(photo)
    assert pixels.shape == (3, 32, 32) and (pixels[:, 16, 0] < pixels[:, 16, -1]).all()


def test_a_network_without_a_map_of_features_is_named(tmp_path):
    _, path = timm_file("crossvit_tiny_240", tmp_path)
    with pytest.raises(ValueError, match="timm:crossvit_tiny_240 gives no map of spatial features"):
        ImageTower("timm:crossvit_tiny_240", path)


def test_weights_by_order(resnet, tmp_path):
    (model, path), renamed = resnet, tmp_path / "renamed.pth"
    weights = {f"layer{i:03}": v for i, v in enumerate(model.state_dict().values())}
    torch.save(weights, renamed)  # as it is in the network's order; safetensors sorts names
    with pytest.raises(ValueError, match="lacks .* if only names differ, set image_weights_by_order"):
        ImageTower("timm:resnet10t", renamed)
    found, expected = ImageTower("timm:resnet10t", renamed, by_order=True), ImageTower("timm:resnet10t", path)
    assert tower_key(found) == tower_key(expected)


@pytest.mark.parametrize("change, message", [
    (lambda items: items[:-1], "holds .* tensors, the network .*: they cannot be matched by order"),
    (lambda items: items[1:] + items[:1], "does not fit timm:resnet10t: Tensor size mismatch conv1.0.weight"),
])  # fmt: skip
def test_weights_whose_order_does_not_fit(resnet, tmp_path, change, message):
    torch.save(dict(change([(f"x.{k}", v) for k, v in resnet[0].state_dict().items()])), tmp_path / "other.pth")
    with pytest.raises(ValueError, match=message):
        ImageTower("timm:resnet10t", tmp_path / "other.pth", by_order=True)


def test_timm_checkpoints_of_torch(vit, tmp_path):
    (model, path), nested, plain = vit, tmp_path / "nested.pth", tmp_path / "plain.pth"
    torch.save({"state_dict": model.state_dict()}, nested)
    torch.save(model.state_dict(), plain)
    assert len({tower_key(ImageTower("timm:test_vit", file)) for file in (path, nested, plain)}) == 1


def test_timm_checkpoints_that_do_not_fit(vit, tmp_path):
    state = load_file(vit[1])
    state.pop("norm.weight")
    save_file(state, tmp_path / "part.safetensors")
    larger = timm_file("test_vit", tmp_path, img_size=320)[1]
    for name, path, message in (
        ("timm:resnet10t", vit[1], r"does not fit timm:resnet10t: it lacks \d+ tensors"),
        ("timm:test_vit", larger, "does not fit timm:test_vit"),
        ("timm:test_vit", tmp_path / "part.safetensors", "lacks 1 tensors, such as norm.weight"),
    ):
        with pytest.raises(ValueError, match=message):
            ImageTower(name, path)


def test_timm_files_that_are_no_checkpoints(tmp_path):
    torch.save({"weights": Trap(tmp_path / "sprung")}, tmp_path / "pickled.pth")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("no tensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    for name in ("pickled.pth", "list.pth", "text.pth", "text.safetensors", "missing.safetensors"):
        with pytest.raises(ValueError, match=f"image_weights .*{name}"):
            ImageTower("timm:test_vit", tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_timm_without_network(monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", no_network)
    with pytest.raises(ValueError, match="cannot be downloaded .*no network.* give a local file as image_weights"):
        ImageTower("timm:test_vit")


def test_the_key_depends_on_weights_and_preprocessing(mini):
    same, other, cropped = ImageTower("mini"), ImageTower("mini"), ImageTower("mini")
    with torch.no_grad():
        other.trunk.proj[0, 0] += 1e-3
    cropped.preprocess = timm.data.create_transform(64)
    more = [ImageTower("mini", windows=windows) for windows in (4, 25)]
    assert tower_key(same) == tower_key(mini)
    assert len({tower_key(tower) for tower in (mini, other, cropped, *more)}) == 5
    assert tower_key(ImageTower("mini", windows="72/56")) == tower_key(more[0])


CORNERS = [(0, 0), (0, 56), (56, 0), (56, 56)]
NINE = [(28 * row, 28 * column, 72) for row in range(3) for column in range(3)]
SIXTEEN = [(24 * row, 24 * column, 56) for row in range(4) for column in range(4)]


@pytest.mark.parametrize("windows, expected", [
    (0, []), (4, [(*corner, 72) for corner in CORNERS]), (25, NINE + SIXTEEN), ("56/24", SIXTEEN),
    ("90/60+99/99", [(0, 0, 90), (0, 0, 99)]),
])  # fmt: skip
def test_windows_by_number_and_by_sizes_and_strides(windows, expected):
    assert windows_of(windows) == expected


@pytest.mark.parametrize(
    "windows", [7, "4", "", "72", "72/", "0/3", "72/0", "128/3", "72/28+", "72/28 + 9/9", "x/y", True]
)
def test_windows_that_are_refused(windows):
    with pytest.raises(ValueError, match=f"windows must be 0, 4, 25, or sizes .*; got {re.escape(repr(windows))}$"):
        ImageTower("mini", windows=windows)


@torch.no_grad()
@pytest.mark.parametrize("name", ["mini", "test_efficientnet"])
def test_tokens_of_windows_are_the_vectors_of_crops_scaled_up(name, tmp_path):
    weights = None if name == "mini" else timm_file(name, tmp_path)[1]
    kind = name if name == "mini" else f"timm:{name}"
    plain, tower = ImageTower(kind, weights), ImageTower(kind, weights, windows="48/40+72/56")
    sides = tower.preprocess(Image.new("RGB", (9, 9))).shape[1:]
    x = torch.randn(2, 3, *sides)
    tokens, vectors = tower(x)
    boxes = [(40 * row, 40 * column, 48) for row in range(3) for column in range(3)] + [(*c, 72) for c in CORNERS]
    assert tokens.shape == (2, 14, plain.embed_dim) == (2, tower.num_tokens, tower.num_features)
    assert torch.equal(tokens[:, 0], vectors) and tower.grid == plain.grid
    torch.testing.assert_close(vectors, plain(x)[1])
    for i, box in enumerate(boxes):
        top, left, size = (round(part * sides[0] / 128) for part in box)
        crop = resized_crop(x, top, left, size, size, list(sides), InterpolationMode.BICUBIC, antialias=True)
        torch.testing.assert_close(tokens[:, 1 + i], plain(crop)[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_towers_in_mixed_precision(mini, pixels, dtype):
    tokens, vectors = mini(pixels)
    with torch.autocast("cpu", dtype):
        low, low_vectors = mini(pixels)
    assert (low - tokens).abs().max() < 0.1 * tokens.abs().max()
    assert torch.nn.functional.cosine_similarity(low_vectors.float(), vectors).min() > 0.99


def test_a_tower_compiles(resnet):
    tower, x = ImageTower("timm:resnet10t", resnet[1]), torch.randn(2, 3, 64, 64)
    compiled = torch.compile(tower, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), tower(x), rtol=0, atol=1e-4)
    torch.compiler.reset()


def test_convolutions_are_channels_last(resnet):
    tower = ImageTower("timm:resnet10t", resnet[1])
    maps = outputs(tower.trunk.layer1)
    tower(torch.randn(2, 3, 64, 64))
    assert maps[0].is_contiguous(memory_format=torch.channels_last) and not maps[0].is_contiguous()
