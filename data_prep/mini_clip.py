"""Train the mini CLIP that is packaged in `clipdec/mini_clip/`: a small open_clip model, from scratch, on captioned
emoji scenes.

    python -m data_prep.mini_clip --out clipdec/mini_clip
    python -m data_prep.mini_clip --without-unseen --out runs/mini_clip_without

Contrastive training as CLIP's (Radford et al. 2021): each batch pairs scenes of one to three objects with captions that
name them, unseen concepts included, as captions of the web do. So "unseen" means unseen by the head. The second command
prices that: its pictures and captions never hold an unseen concept. The names of a batch are drawn without repetition,
so no caption fits another scene of its batch. Scenes are drawn as they are needed and none is seen twice.
"""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.loss import ClipLoss
from safetensors.torch import save as to_bytes
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from clipdec.labels import join_names
from data_prep import emoji_scenes, script
from data_prep.files import write_whole

IMAGE = {"image_size": 128, "patch_size": 16, "layers": 4, "width": 192, "head_width": 48, "pool_type": "avg"}
TEXT = {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
PIXELS = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
CONFIG = {"model_cfg": {"embed_dim": 128, "vision_cfg": IMAGE, "text_cfg": TEXT}, "preprocess_cfg": PIXELS}
TEMPLATES = ("a photo of {}", "a picture of {}", "an image with {}", "{}")


def known(without_unseen):
    """The names of the concepts that a mini CLIP is trained on."""
    seen, unseen, *_ = emoji_scenes.concepts()
    return seen if without_unseen else seen + unseen


def caption(rng, names):
    """A sentence that names the objects, in any order: "a photo of pizza, dog face and key"."""
    listed = join_names([names[i] for i in rng.permutation(len(names))])
    return TEMPLATES[rng.integers(len(TEMPLATES))].format(listed)


class Batches(Dataset):
    """Batch `index`: (pixels [batch_size, 3, 128, 128] uint8, caption token ids [batch_size, context])."""

    def __init__(self, names, tokenizer, batch_size, steps, seed):
        self.names, self.tokenizer, self.batch_size, self.steps, self.seed = names, tokenizer, batch_size, steps, seed

    def __len__(self):
        return self.steps

    def __getitem__(self, index):
        rng = np.random.default_rng([self.seed, index])
        names = [self.names[i] for i in rng.permutation(len(self.names))]
        counts = rng.choice([1, 2, 3], self.batch_size, p=[0.5, 0.35, 0.15])
        groups = [[names.pop() for _ in range(n)] for n in counts]
        settings = rng.choice(list(emoji_scenes.SETTINGS), self.batch_size)
        pixels = np.stack([np.asarray(emoji_scenes.draw(rng, *scene)) for scene in zip(groups, settings)])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2), self.tokenizer([caption(rng, group) for group in groups])


def normalise(pixels):
    """uint8 pixels to the range -1..1 of the model's preprocessing (mean and std 0.5)."""
    return pixels.float() / 127.5 - 1


@torch.no_grad()
def accuracy(model, tokenizer, names, seed, per_name=4):
    """Zero-shot top-1 in percent among `names`, on `per_name` scenes of each single object."""
    model.eval()
    device = model.logit_scale.device
    text = model.encode_text(tokenizer([f"a photo of {n}" for n in names]).to(device), normalize=True)
    rng, right = np.random.default_rng(seed), 0
    settings = list(emoji_scenes.SETTINGS)
    for _ in range(per_name):
        pixels = [np.asarray(emoji_scenes.draw(rng, [n], settings[rng.integers(len(settings))])) for n in names]
        parts = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).split(256)
        image = torch.cat([model.encode_image(normalise(part.to(device)), normalize=True) for part in parts])
        right += (image @ text.T).argmax(1).cpu().eq(torch.arange(len(names))).sum().item()
    model.train()
    return 100 * right / (per_name * len(names))


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix is replaced by its nearest orthogonal one (Jordan et al. 2024), at the RMS of AdamW: as
    `torch.optim.Muon`, but not in bfloat16, which a CPU without bfloat16 units emulates slowly.
    """

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.05):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p)).lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalise(p.grad.lerp(buffer, group["momentum"])) * 0.2 * max(p.shape) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"])


def orthogonalise(g, steps=5):
    """Five quintic Newton-Schulz iterations: singular values of `g` come near 1, its singular vectors stay."""
    x = (g if g.shape[0] <= g.shape[1] else g.T) / (g.norm() + 1e-7)
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x if g.shape[0] <= g.shape[1] else x.T


def optimisers(model, lr):
    """Muon for the matrices of the transformer blocks, AdamW for the rest (embeddings, norms, biases, projections)."""
    matrices = [p for n, p in model.named_parameters() if "resblocks" in n and p.ndim == 2]
    ids = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in ids]
    return Muon(matrices, lr), torch.optim.AdamW(rest, lr=lr, weight_decay=0.0, betas=(0.9, 0.98))


def train(names, out, steps, batch_size, lr, seed, workers, device, log_every=100):
    """Train on the concepts `names` from scratch, saving to `<out>.partial` on the way. Returns (model, tokenizer,
    seconds).
    """
    for folder in (out, f"{out}.partial"):
        Path(folder).mkdir(parents=True, exist_ok=True)  # now, as nothing can be saved if it fails
    torch.manual_seed(seed)
    model = open_clip.CLIP(**CONFIG["model_cfg"]).to(device)
    tokenizer = open_clip.SimpleTokenizer(context_length=CONFIG["model_cfg"]["text_cfg"]["context_length"])
    batches, ahead = Batches(names, tokenizer, batch_size, steps, seed), 4 if workers else None
    loader = DataLoader(batches, batch_size=None, num_workers=workers, prefetch_factor=ahead)
    opts, criterion, start = optimisers(model, lr), ClipLoss(), time.perf_counter()
    once = {"total_steps": steps, "pct_start": 0.1, "cycle_momentum": False, "anneal_strategy": "linear"}
    schedules = [torch.optim.lr_scheduler.OneCycleLR(o, lr, **once) for o in opts]
    for step, (pixels, ids) in enumerate(tqdm(loader, desc="mini CLIP", mininterval=10), 1):
        image = model.encode_image(normalise(pixels.to(device)), normalize=True)
        text = model.encode_text(ids.to(device), normalize=True)
        loss = criterion(image, text, model.logit_scale.exp())
        loss.backward()
        for each in (*opts, *schedules):
            each.step()
        model.zero_grad()
        model.logit_scale.data.clamp_(max=np.log(100))
        if step % log_every == 0:
            scale, seconds = model.logit_scale.exp().item(), time.perf_counter() - start
            print(f"step {step} loss {loss.item():.3f} scale {scale:.1f} {seconds:.0f} s", flush=True)
        if step % (2 * log_every) == 0:
            save(model, f"{out}.partial")  # the finished model in `out`, maybe the packaged one, stays until the end
            print(f"step {step} top-1 {accuracy(model, tokenizer, names, seed + 1, 1):.1f} %", flush=True)
    return model, tokenizer, time.perf_counter() - start


def save(model, out):
    """Write an open_clip `local-dir:` folder, weights in half precision."""
    out = Path(out)
    write_whole(out / "open_clip_config.json", json.dumps(CONFIG, indent=1))
    weights = {k: v.half().contiguous().cpu() for k, v in model.state_dict().items()}
    write_whole(out / "open_clip_model.safetensors", to_bytes(weights))


def run(args):
    """Train, measure and save, with a note of how."""
    settings = vars(args) | {"device": "cuda" if torch.cuda.is_available() else "cpu"}
    names = known(settings.pop("without_unseen"))
    model, tokenizer, seconds = train(names, **settings)
    save(model, args.out)
    top1 = accuracy(model, tokenizer, names, args.seed + 1)
    found = f"zero-shot top-1 {top1:.1f} % of {len(names)} names"
    print(f"{args.steps} steps of {args.batch_size} in {seconds:.0f} s, {found}")
    note = vars(args) | {"device": settings["device"]}
    del note["out"]
    note |= {"seconds": round(seconds), "zero_shot_top1": round(top1, 2)}
    note |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
    write_whole(Path(args.out) / "training.json", json.dumps(note, indent=1) + "\n")
    shutil.rmtree(f"{args.out}.partial")


def main():
    options = script.parser(__doc__, "clipdec/mini_clip")
    most = len(known(True)) // 3  # scenes of up to three names, none of them twice in a batch
    batch = script.number(int, lambda n: 2 <= n <= most, f"a whole number from 2 to {most}")
    steps = script.number(int, lambda n: n >= 20, "a whole number of at least 20")  # a tenth is the rise of the rate
    rate = script.number(float, lambda x: 0 < x < 1, "a rate above 0 and below 1")
    workers = script.number(int, lambda n: n >= 0, "a whole number of at least 0")
    options.add_argument("--steps", type=steps, default=1600, help="of training")
    options.add_argument("--batch-size", type=batch, default=256, help="scenes in a step")
    options.add_argument("--lr", type=rate, default=3e-3, help="peak learning rate")
    options.add_argument("--seed", type=script.seed, default=0, help="of the weights and the scenes")
    options.add_argument("--workers", type=workers, default=1, help="processes that draw")
    told = "neither pictures nor captions hold an unseen concept of the emoji scenes"
    options.add_argument("--without-unseen", action="store_true", help=told)
    args = options.parse_args()
    with script.messages(options.error, "stopped: weights of every 200th step are in --out with .partial behind it"):
        run(args)


if __name__ == "__main__":
    main()
