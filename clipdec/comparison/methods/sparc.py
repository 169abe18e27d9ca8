"""SPARC's normalisation (Miller et al., CVPR 2025): scores of untouched CLIP made comparable over images and labels."""

from clipdec.comparison.methods.raw_clip import PROMPTS, joined, look_cosines


def sparc_scores(data, config):
    """z-scores [M, L]: an image's cosines over labels, then each label's over all images of test (both with n - 1).

    Transductive: a score depends on which other images are in test. The row "Normalize only" of its code
    (run_SPARC.py), with the mean of four prompts in place of 80, and without its compound prompts. With windows, each
    is an image in the first step, and the highest z-score of a label counts.
    """
    standard = lambda scores, dim: (scores - scores.mean(dim, keepdim=True)) / scores.std(dim, keepdim=True)
    looks = look_cosines(data, config, PROMPTS)
    return standard(joined((standard(part, -1).amax(1) for part in looks), data), 0)
