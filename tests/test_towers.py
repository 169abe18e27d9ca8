"""Towers against the open_clip and timm models they wrap. All weights are packaged or random: nothing is downloaded."""

import json
from copy import deepcopy
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from clipdec.towers import MINI, ImageTower, load_clip
from clipdec.training.tokens import tower_key

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
    scenes = [Image.effect_noise((90, 70), sigma).convert("RGB") for sigma in (10, 60)]
    return torch.stack([mini.preprocess(s) for s in scenes])


@pytest.fixture(scope="module")
def small_clips(tmp_path_factory):
    """{model name: (open_clip model with random weights, safetensors file of them)}."""
    folder, clips = tmp_path_factory.mktemp("open_clip"), {}
    for name, vision in SMALL.items():
        config = {"embed_dim": 12, "vision_cfg": vision, "text_cfg": TEXT}
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    for name in SMALL:
        torch.manual_seed(1)
        model = open_clip.create_model(name).eval()
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / f"{name}.safetensors")
        clips[name] = model, folder / f"{name}.safetensors"
    return clips


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def timm_file(model_name, folder, **changes):
    """(timm model with random weights, safetensors file of them)."""
    model = timm.create_model(model_name, pretrained=False, **changes).eval()
    path = Path(folder) / f"{model_name}.safetensors"
    save_file(model.state_dict(), path)
    return model, path


def test_the_folder_loads_with_open_clip_alone():
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{MINI}")
    ids = open_clip.get_tokenizer(f"local-dir:{MINI}")(["a photo of pizza", "a photo of dog face"])
    assert ids.shape == (2, model.context_length) and not torch.equal(ids[0], ids[1])
    stored = load_file(MINI / "open_clip_model.safetensors")
    assert stored.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, stored[name].float(), rtol=0, atol=0)
    assert preprocess(Image.new("RGB", (50, 90))).shape == (3, 128, 128)


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
    for name, value in load_clip("mini").model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("name, grid, channels", [("clipdec-test-rn", (2, 2), 256), ("clipdec-test-vit", (4, 4), 16)])
def test_open_clip_from_a_file(small_clips, name, grid, channels):
    model, path = small_clips[name]
    tower = ImageTower(f"open_clip:{name}/{path}")
    for key, value in model.visual.state_dict().items():
        assert torch.equal(tower.trunk.state_dict()[key], value), key
    x = torch.randn(3, 3, *[SMALL[name]["image_size"]] * 2)
    tokens, vectors = tower(x)
    assert tower.grid == grid and tokens.shape == (3, grid[0] * grid[1], channels) and tower.num_features == channels
    torch.testing.assert_close(vectors, model.encode_image(x), rtol=0, atol=1e-5)
    assert tower.embed_dim == 12 and not tower.training


def test_open_clip_resnet_tokens_are_the_last_feature_map(small_clips):
    model, path = small_clips["clipdec-test-rn"]
    x = torch.randn(2, 3, 64, 64)
    v = model.visual
    maps = v.layer4(v.layer3(v.layer2(v.layer1(v.stem(x)))))
    tokens = ImageTower(f"open_clip:clipdec-test-rn/{path}")(x)[0]
    for row in range(2):
        for column in range(2):
            torch.testing.assert_close(tokens[:, 2 * row + column], maps[:, :, row, column], rtol=0, atol=1e-5)


def test_open_clip_files_that_cannot_be_loaded(small_clips, tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    torch.save({"weights": Trap(tmp_path / "sprung")}, tmp_path / "pickled.pt")
    files = [tmp_path / name for name in ("broken.safetensors", "pickled.pt", "missing.pt")]
    for path in [*files, small_clips["clipdec-test-rn"][1]]:  # the last holds the weights of another model
        with pytest.raises(ValueError, match="weights of .* cannot be loaded"):
            load_clip(f"open_clip:clipdec-test-vit/{path}")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["maxi", "", "mini:x", "open_clip:ViT-B-32", "clip:ViT-B-32/openai"])
def test_unknown_towers(name):
    with pytest.raises(ValueError, match="unknown CLIP tower .* known are mini, open_clip:"):
        ImageTower(name)


def test_unknown_models():
    with pytest.raises(ValueError, match="open_clip has no model 'ViT-Z-1'"):
        ImageTower("open_clip:ViT-Z-1/openai")
    with pytest.raises(ValueError, match="timm has no model 'no_such_net'"):
        ImageTower("timm:no_such_net")


def test_image_weights_are_for_timm(tmp_path):
    with pytest.raises(ValueError, match="image_weights is for timm towers"):
        ImageTower("mini", tmp_path / "x.safetensors")


KINDS = [  # with a class token; plain; a convolution after the last stage, twice; channels last; no norm inside
    "test_vit", "resnet10t", "mobilenetv3_small_050", "test_efficientnet", "swin_tiny_patch4_window7_224",
    "hiera_tiny_224",
]  # fmt: skip


@pytest.mark.parametrize("model_name", KINDS)
def test_timm_from_a_file(model_name, tmp_path):
    model, path = timm_file(model_name, tmp_path)  # with its classifier, as published weights have one
    tower = ImageTower(f"timm:{model_name}", path)
    x = tower.preprocess(Image.effect_noise((80, 60), 40).convert("RGB"))[None]
    tokens, vectors = tower(x)
    with torch.no_grad():
        features = model.forward_features(x)
        if features.ndim == 3:
            expected = features[:, getattr(model, "num_prefix_tokens", 0) :]
        else:
            expected = features.flatten(1, 2) if model_name.startswith("swin") else features.flatten(2).mT
        torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(vectors, model.forward_head(features, pre_logits=True), rtol=0, atol=1e-5)
    assert tokens.shape == (1, tower.grid[0] * tower.grid[1], model.num_features)
    assert tower.num_features == model.num_features


def test_the_preprocessing_is_the_towers_own_and_keeps_the_whole_image(tmp_path):
    _, path = timm_file("resnet10t", tmp_path)
    tower = ImageTower("timm:resnet10t", path)
    config = timm.data.resolve_model_data_config(tower.trunk)
    photo = Image.new("RGB", (400, 100), "white")
    photo.paste((255, 0, 0), (0, 0, 40, 100))  # what a centre crop would cut off
    pixels = tower.preprocess(photo)
    assert pixels.shape == config["input_size"]
    mean, std = (torch.tensor(config[k])[:, None] for k in ("mean", "std"))
    middle = config["input_size"][1] // 2
    expected = (torch.tensor([[1.0, 1], [0, 1], [0, 1]]) - mean) / std
    torch.testing.assert_close(pixels[:, middle, [3, -3]], expected, rtol=0, atol=1e-5)


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


def test_weights_by_order(tmp_path):
    model, path = timm_file("resnet10t", tmp_path)
    renamed = {f"layer{i:03}": v for i, v in enumerate(model.state_dict().values())}
    torch.save(renamed, tmp_path / "renamed.pth")  # as it is in the network's order; safetensors sorts names
    with pytest.raises(ValueError, match="lacks .* if only names differ, set image_weights_by_order"):
        ImageTower("timm:resnet10t", tmp_path / "renamed.pth")
    by_order = ImageTower("timm:resnet10t", tmp_path / "renamed.pth", by_order=True)
    assert tower_key(by_order) == tower_key(ImageTower("timm:resnet10t", path))


@pytest.mark.parametrize("change, message", [
    (lambda items: items[:-1], "holds .* tensors, the network .*: they cannot be matched by order"),
    (lambda items: items[1:] + items[:1], "does not fit timm:resnet10t: Tensor size mismatch conv1.0.weight"),
])  # fmt: skip
def test_weights_whose_order_does_not_fit(tmp_path, change, message):
    model, _ = timm_file("resnet10t", tmp_path)
    torch.save(dict(change([(f"x.{k}", v) for k, v in model.state_dict().items()])), tmp_path / "other.pth")
    with pytest.raises(ValueError, match=message):
        ImageTower("timm:resnet10t", tmp_path / "other.pth", by_order=True)


def test_timm_checkpoints_of_torch(tmp_path):
    model, path = timm_file("test_vit", tmp_path)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "nested.pth")
    torch.save(model.state_dict(), tmp_path / "plain.pth")
    keys = {tower_key(ImageTower("timm:test_vit", p)) for p in (path, tmp_path / "nested.pth", tmp_path / "plain.pth")}
    assert len(keys) == 1  # the same weights


def test_timm_checkpoints_that_do_not_fit(tmp_path):
    _, path = timm_file("test_vit", tmp_path)
    with pytest.raises(ValueError, match=r"does not fit timm:resnet10t: it lacks \d+ tensors"):
        ImageTower("timm:resnet10t", path)
    _, larger = timm_file("test_vit", tmp_path, img_size=320)
    with pytest.raises(ValueError, match="does not fit timm:test_vit"):
        ImageTower("timm:test_vit", larger)
    state = load_file(path)
    state.pop("norm.weight")
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match="lacks 1 tensors, such as norm.weight"):
        ImageTower("timm:test_vit", tmp_path / "part.safetensors")


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
    assert tower_key(same) == tower_key(mini) and len({tower_key(tower) for tower in (mini, other, cropped)}) == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_towers_in_mixed_precision(mini, pixels, dtype):
    tokens, vectors = mini(pixels)
    with torch.autocast("cpu", dtype):
        low, low_vectors = mini(pixels)
    assert (low - tokens).abs().max() < 0.1 * tokens.abs().max()
    assert torch.nn.functional.cosine_similarity(low_vectors.float(), vectors).min() > 0.99


def test_a_tower_compiles(tmp_path):
    _, path = timm_file("resnet10t", tmp_path)
    tower = ImageTower("timm:resnet10t", path)
    x = torch.randn(2, 3, 64, 64)
    for ours, compiled in zip(tower(x), torch.compile(tower, backend="aot_eager", fullgraph=True)(x)):
        torch.testing.assert_close(compiled, ours, rtol=0, atol=1e-4)
    torch.compiler.reset()


def test_convolutions_are_channels_last(tmp_path):
    _, path = timm_file("resnet10t", tmp_path)
    tower = ImageTower("timm:resnet10t", path)
    seen = []
    tower.trunk.layer1.register_forward_hook(lambda module, inputs, output: seen.append(output))
    tower(torch.randn(2, 3, 64, 64))
    assert seen[0].is_contiguous(memory_format=torch.channels_last) and not seen[0].is_contiguous()
