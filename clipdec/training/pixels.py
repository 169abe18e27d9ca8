"""Images of a split as tensors, for a DataLoader, and their augmentation."""

import torch
from torchvision.transforms import v2


class Pixels(torch.utils.data.Dataset):
    """A split as (pixels [3, H, W], multi-hot float labels [L], index), for a DataLoader.

    With a `seed` the random numbers of an image's transform depend on it and on the image alone: not on the order, on
    the number of workers or processes, or on where a run was resumed.
    """

    def __init__(self, split, transform, seed=None):
        self.split, self.transform, self.seed = split, transform, seed

    def __len__(self):
        return len(self.split)

    def __getitem__(self, i):
        image, targets = self.split[i]
        if self.seed is None:
            return self.transform(image), targets.float(), i
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(hash((self.seed, int(i))))
            return self.transform(image), targets.float(), i


def augmented(preprocess, cutout_first=False):
    """A tower's transform with RandAugment before and Cutout after it, a square of half the side: 0 where pixels are
    normalised, which is the tower's mean colour, or black if it has none; or as in the author's code, with `cut_out`
    and RandAugment before.
    """
    if cutout_first:
        return v2.Compose([cut_out, v2.RandAugment(), preprocess])
    return v2.Compose([v2.RandAugment(), preprocess, v2.RandomErasing(p=1.0, scale=(0.25, 0.25), ratio=(1.0, 1.0))])


def cut_out(image):
    """The Cutout of the author's code: an image with a box of one random colour, of half its width and height, around
    any of its pixels, so that a part may lie over the edge. A tower that makes the image square makes it a square.
    """
    (width, height), cut = image.size, image.copy()
    x, y = torch.randint(width, ()).item(), torch.randint(height, ()).item()
    left, top = x - width // 4, y - height // 4
    cut.paste(tuple(torch.randint(256, (3,)).tolist()), (left, top, left + width // 2, top + height // 2))
    return cut
