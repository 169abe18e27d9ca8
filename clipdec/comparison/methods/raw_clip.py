"""What a CLIP-Decoder is compared with: untouched CLIP in several forms, and CONSE."""

import torch
import torch.nn.functional as F

from clipdec.data import encode_images
from clipdec.labels import encode_labels
from clipdec.model import label_vectors
from clipdec.training.progress import progress
from clipdec.towers import ImageTower, load_clip

PROMPTS = ("{}", "a photo of {}", "a picture of {}", "an image with {}")


def raw_clip_scores(data, config, prompts=None):
    """Untouched CLIP on test: cosine of the global image vector with each label's text vector, [M, L].

    The CLIP is the run's text tower, whatever image tower the run trains on; the prompt is the run's, or the mean of the
    text vectors of several `prompts` (Radford et al., ICML 2021, section 3.1.4).
    """
    return _clip_vectors(data, config, data.test) @ _clip_text(data.labels, config, prompts or (config.prompt,)).T


def raw_clip_softmax_scores(data, config):
    """Untouched CLIP as it was trained: the cosines of an image pass a softmax over all labels, here logarithms of it, [M, L].

    Within an image the order is that of the cosines. Between images it is not: an image in which no label is ahead gives each
    of them little. So mAP, which ranks images, is another one; F1@K is the same.
    """
    return (load_clip(config.text_tower).model.logit_scale.exp().detach().cpu() * raw_clip_scores(data, config)).log_softmax(-1)


def raw_clip_patch_scores(data, config):
    """Untouched CLIP asked patch by patch: cosine of each label's text vector with the best patch of an image, [M, L].

    The patch tokens go through the projection that belongs to the global vector, as in MaskCLIP (Zhou et al., ECCV 2022).
    Raises ValueError if the CLIP's image tower has no such projection (it is not a plain ViT).
    """
    projection = patch_projection(config)
    if projection is None:
        raise ValueError(f"the image tower of {config.text_tower} has no projection that its patches could go through")
    tower, text = ImageTower(config.text_tower), _clip_text(data.labels, config, (config.prompt,))
    tokens, _ = encode_images(tower, data.test, data.folder / "tokens", num_workers=config.num_workers, device=config.device)
    projection = projection.detach().float().cpu()
    return torch.cat([(F.normalize(part.float() @ projection, dim=-1) @ text.T).amax(1) for part in tokens.split(64)])


def patch_projection(config):
    """The projection of a ViT's tokens into the space of the text vectors, None for another tower."""
    return getattr(load_clip(config.text_tower).model.visual, "proj", None)


def conse_scores(data, config, top=10, epochs=20, lr=1e-2):
    """CONSE (Norouzi et al., ICLR 2014): an image's vector is the mean of the vectors of the `top` seen labels that a classifier
    finds most probable, weighted with their probabilities; its score for a label is the cosine with that label's vector, [M, L].

    The classifier is linear on the global vectors of CLIP, a softmax over the seen labels trained with the cross-entropy to an
    image's labels, which share its probability. Label vectors are the run's.
    """
    seen = data.labels.seen_index
    targets = data.train.targets[:, seen].float()
    rows = targets.any(1).nonzero().flatten()
    images, targets = _clip_vectors(data, config, data.train)[rows], F.normalize(targets[rows], p=1)
    torch.manual_seed(config.seed)
    classifier = torch.nn.Linear(images.shape[1], len(seen))
    steps = epochs * -(-len(rows) // 256)
    optimiser = torch.optim.AdamW(classifier.parameters(), lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps)
    scale = 10  # unit vectors in, logits that can tell a thousand labels apart out
    for _ in progress(range(epochs), "CONSE"):
        for part in torch.randperm(len(rows)).split(256):
            optimiser.zero_grad()
            F.cross_entropy(classifier(scale * images[part]), targets[part]).backward()
            optimiser.step()
            schedule.step()
    vectors = label_vectors(config, data.labels.names)
    with torch.no_grad():
        probabilities, best = classifier(scale * _clip_vectors(data, config, data.test)).softmax(-1).topk(min(top, len(seen)))  # [M, top]
    embedded = torch.einsum("mt,mtd->md", probabilities, vectors[seen][best])  # [M, D]
    return F.normalize(embedded, dim=-1) @ vectors.T


def _clip_vectors(data, config, split):
    """Global vectors of the run's CLIP, of length 1, [M, D]."""
    _, vectors = encode_images(ImageTower(config.text_tower), split, data.folder / "tokens", num_workers=config.num_workers, device=config.device)
    return F.normalize(vectors[:], dim=-1)


def _clip_text(labels, config, prompts):
    """Text vectors of the run's CLIP, the mean over prompts, of length 1, [L, D]."""
    return F.normalize(sum(encode_labels(labels.names, config.text_tower, prompt) for prompt in prompts), dim=-1)
