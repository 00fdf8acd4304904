"""Keys and values written in place equal those that are copied, and leave the prefix as it was."""

import torch

from ladi.models.cache import ROOM, RoomyKeyValues
from ladi.models.decoding import append, continue_ids, select_rows, with_room


@torch.no_grad()
def test_writing_in_place_equals_copying_beyond_the_first_buffer(backbone):
    ids = torch.randint(6, 26, (3, 2 * ROOM + 5), generator=torch.Generator().manual_seed(0))
    valid = torch.ones_like(ids, dtype=torch.bool)
    _, full = append(backbone, None, backbone.embed(ids), valid)
    prefix, _ = append(backbone, None, backbone.embed(ids[:, :4]), valid[:, :4])
    prefix, pieces = with_room(prefix), []
    for i in range(4, ids.shape[1]):
        prefix, hidden = append(backbone, prefix, backbone.embed(ids[:, i : i + 1]), valid[:, i : i + 1])
        pieces.append(hidden)
    assert isinstance(prefix.past, RoomyKeyValues)
    assert prefix.past[0][0].shape[2] == ids.shape[1]
    torch.testing.assert_close(torch.cat(pieces, 1), full[:, 4:], rtol=0, atol=1e-5)


@torch.no_grad()
def test_most_tokens_are_written_without_a_copy(backbone):
    prefix, _ = append(backbone, None, backbone.embed(torch.full((1, 4), 7)), torch.ones(1, 4, dtype=torch.bool))
    prefix, places = with_room(prefix), set()
    for _ in range(ROOM):
        prefix, _ = append(backbone, prefix, backbone.embed(torch.full((1, 1), 7)), torch.ones(1, 1, dtype=torch.bool))
        places.add(prefix.past[0][0].data_ptr())
    assert len(places) == 1


def test_a_prefix_can_be_decoded_from_twice(backbone):
    ids, valid = backbone.tokenize(["44-19=", "3*7="], side="left")
    with torch.no_grad():
        prefix, _ = append(backbone, None, backbone.embed(ids), valid)
    before = [x.clone() for pair in prefix.past for x in pair]
    first, other = continue_ids(backbone, prefix, 8), continue_ids(backbone, select_rows(prefix, torch.tensor([1])), 8)
    assert torch.equal(continue_ids(backbone, prefix, 8).ids, first.ids)
    assert torch.equal(other.ids[0], first.ids[1, : other.ids.shape[1]])
    assert all(torch.equal(a, b) for a, b in zip(before, (x for pair in prefix.past for x in pair), strict=True))
