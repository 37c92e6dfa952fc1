"""SparseVLM: raters, counts, rank and clusters against the authors' code; the rule between the rows of the table."""

import pytest
import torch

import sparsight
from sparsight import PruneError
from sparsight.ops import text
from sparsight.ops.cluster import density_peaks, keep_and_recycle


def rows_of(want):
    """Raters, and the attention rows of the raters over the image columns."""
    rated = text.raters(want["vision_embeds"], want["text_embeds"])
    start, n = int(want["v_token_start"]), int(want["v_token_num"])
    return rated[0], want["text_rows_attn"].mean(dim=1)[:, rated[0], start : start + n]


def test_raters_score_and_fixed_count(golden):
    want = golden("vlm/sparsevlm_topk_N100_layer15_seed0")
    rated, rows = rows_of(want)
    assert torch.equal(rated.nonzero().squeeze(1), want["text_rater_idx"])
    torch.testing.assert_close(text.rater_score(want["vision_embeds"], want["text_embeds"]), want["text_rater_score"])
    torch.testing.assert_close(text.mean_row(rows), want["vis_score"])
    count = sparsight.parse("sparsevlm:tokens=192").schedule.stay(576, 100, 2, 3)
    assert count == 99  # 110 asked, at least one leaves
    plan = keep_and_recycle(text.mean_row(rows), want["vision_embeds"], count, torch.zeros(1, 100))
    assert torch.equal(plan.keep[0, :99], want["keep"])


def test_rank_count(golden):
    want = golden("vlm/sparsevlm_rank_v1_0_N100_seed0")
    rated, rows = rows_of(want)
    assert torch.equal(rated.nonzero().squeeze(1), want["text_rater_idx"])
    recipe = f"sparsevlm:tokens=64,count=rank,scale={float(want['scale']):g},bias={float(want['bias']):g},recycle=false"
    out = sparsight.reduce(recipe, x=want["vision_embeds"], text_attn=rows)
    assert torch.equal(out.plan.keep[0], want["keep"])


def test_clusters(golden):
    want = golden("vlm/sparsevlm_cluster_N83_k9_seed0")
    found = density_peaks(want["x"], int(want["cluster_num"]), want["noise"])
    assert torch.equal(found.centres, want["centers"])
    assert torch.equal(found.member, want["cluster_id"])
    torch.testing.assert_close(found.density, want["density"])
    torch.testing.assert_close(found.apart, want["dist_indicator"])


def test_recycled_tokens_are_means(rng):
    x, rows, noise = torch.randn(1, 60, 8, generator=rng), torch.rand(1, 2, 60, generator=rng), torch.rand(1, 60, generator=rng)
    out = sparsight.reduce("sparsevlm:keep=0.1,layers=1/2/3", x=x, text_attn=rows, noise=noise)
    tail = out.plan.tail
    assert tail == int((60 - (out.plan.slots - tail)) * 0.3 + 1) // 10 + 1
    for slot in range(out.plan.slots):
        torch.testing.assert_close(out.x[0, slot], x[0, out.plan.owner[0] == slot].mean(dim=0))
    kept = out.plan.keep[0, :-tail]
    assert torch.equal(kept, kept.sort().values)


def test_ties_without_noise_go_to_the_lower_index():
    found = density_peaks(torch.ones(1, 6, 4), 2)
    assert found.centres.tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("tokens", "counts"), [(192, (300, 200, 110)), (128, (303, 110, 36)), (96, (238, 48, 26)), (64, (66, 30, 17))]
)
def test_table(tokens, counts):
    schedule = sparsight.parse(f"sparsevlm:tokens={tokens}").schedule
    assert tuple(schedule.stay(576, 576, i, 3) for i in range(3)) == counts


def test_between_and_beyond_the_table():
    def counts(recipe, n):
        return [sparsight.parse(recipe).schedule.stay(n, n, i, 3) for i in range(3)]

    assert counts("sparsevlm:tokens=160", 576) == [302, 155, 73]
    assert counts("sparsevlm:tokens=32", 576) == [33, 15, 9]
    assert counts("sparsevlm:tokens=384", 576) == [438, 388, 343]
    assert counts("sparsevlm:keep=0.333333333333333333", 288) == [150, 100, 55]
    assert counts("sparsevlm:keep=1", 288) == counts("sparsevlm:tokens=576", 288) == [288, 288, 288]


def test_everyone_rates_if_nobody_stands_out():
    assert text.raters(torch.ones(1, 4, 3), torch.ones(1, 5, 3)).all()
    assert text.raters(torch.ones(1, 4, 3), torch.ones(1, 1, 3)).all()


def test_three_layers_or_rank():
    with pytest.raises(PruneError, match="three layers"):
        sparsight.parse("sparsevlm:layers=2/6")
    assert sparsight.parse("sparsevlm:layers=2/6,count=rank").schedule.resolve(32) == (3, 7)
