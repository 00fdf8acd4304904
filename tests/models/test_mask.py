import torch

from ladi.models.mask import append_mask, block_causal_mask, noisy_copies_mask


def drawn(mask):
    """The mask as rows of x and -, as in the module's docstring."""
    return ["".join("x" if cell else "-" for cell in row) for row in mask.tolist()]


def test_the_clean_mask_is_the_one_drawn_in_the_docstring():
    block = torch.tensor([[-1, 0, 0, 1, 1, -1]])
    mask = block_causal_mask(block, torch.ones(1, 6, dtype=torch.bool))
    assert drawn(mask[0]) == ["x-----", "xxx---", "xxx---", "xxxxx-", "xxxxx-", "xxxxxx"]


def test_padding_is_seen_by_itself_alone():
    valid = torch.tensor([[False, True, True]])
    mask = block_causal_mask(torch.full((1, 3), -1), valid)
    assert drawn(mask[0]) == ["x--", "-x-", "-xx"]


def test_noisy_copies_see_their_own_prefix_and_themselves():
    visible = torch.tensor([[[True, True, False], [True, False, False]]])
    assert drawn(noisy_copies_mask(visible, 2)[0]) == ["xx-xx--", "xx-xx--", "x----xx", "x----xx"]


def test_appended_tokens_see_the_valid_cache_and_the_past():
    mask = append_mask(torch.tensor([[True, False]]), torch.ones(1, 2, dtype=torch.bool))
    assert drawn(mask[0]) == ["x-x-", "x-xx"]
