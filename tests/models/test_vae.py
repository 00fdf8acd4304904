from dataclasses import replace

import pytest
import torch

from ladi.losses import token_cross_entropy
from ladi.models.vae import ThoughtVAE, ThoughtVAEConfig, corrupt, read_config
from ladi.tasks.blocks import Block
from tests.conftest import tiny_backbone

BLOCKS = [Block("44,19,35:60\n", "44-19=25"), Block("44,19,35:60\n44-19=25\n", "35+25=60"), Block("7,8:56\n", "7*8=56")]
TEXTS, BEFORE = [block.text for block in BLOCKS], [block.before for block in BLOCKS]


def make(decoder="full", **fields):
    config = ThoughtVAEConfig(num_latents=2, latent_width=8, decoder=decoder, max_block_tokens=12, **fields)
    return ThoughtVAE.from_backbone(config, tiny_backbone())


def train(vae, steps, lr=3e-3):
    batch = vae.tokenize(BLOCKS)
    optimizer = torch.optim.Adam([p for p in vae.parameters() if p.requires_grad], lr)
    for step in range(steps):
        loss, _ = vae.loss(batch, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return vae.eval()


@pytest.mark.parametrize("reads_context", [False, True])
def test_one_batch_can_be_overfitted_and_is_decoded_exactly(reads_context):
    vae = train(make(reads_context=reads_context), 250)
    posterior = vae.encode(vae.tokenize(BLOCKS))
    assert vae.decode(posterior.mean, BEFORE) == TEXTS


@pytest.mark.parametrize("decoder", ["frozen", "lora"])
def test_the_decoder_language_model_is_bitwise_unchanged(decoder):
    vae = make(decoder)
    before = {n: p.clone() for n, p in vae.decoder.named_parameters() if "lora" not in n}
    train(vae, 3)
    after = dict(vae.decoder.named_parameters())
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert all(after[n].grad is None for n in before)


def test_the_encoder_trains_while_the_decoder_is_frozen():
    vae = make("frozen")
    before = vae.encoder.lm.model.layers[0].mlp.up_proj.weight.clone()
    train(vae, 3)
    assert not torch.equal(before, vae.encoder.lm.model.layers[0].mlp.up_proj.weight)


def test_kl_and_loss_agree_with_torch_distributions():
    vae = make(beta=0.5)
    batch = vae.tokenize(BLOCKS)
    loss, metrics = vae.loss(batch, torch.Generator().manual_seed(0))
    posterior = vae.encode(batch)
    q = torch.distributions.Normal(posterior.mean, (0.5 * posterior.log_var).exp())
    kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum((1, 2)).mean()
    torch.testing.assert_close(metrics["loss/kl"], kl, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss, metrics["loss/reconstruction"] + 0.5 * kl, rtol=1e-4, atol=1e-4)


def test_posterior_samples_have_the_posteriors_moments():
    vae = make()
    posterior = vae.encode(vae.tokenize(BLOCKS[:1] * 4000))
    samples = posterior.sample(torch.Generator().manual_seed(0))
    torch.testing.assert_close(samples.mean(0), posterior.mean[0], rtol=0, atol=0.02)
    torch.testing.assert_close(samples.std(0), (0.5 * posterior.log_var[0]).exp(), rtol=0.06, atol=0)


@pytest.mark.parametrize("reads_context", [False, True])
def test_padding_changes_neither_posterior_nor_logits(reads_context):
    vae = make(reads_context=reads_context)
    blocks = [Block("7,8:56\n", "7*8=56"), Block("90,3,1:31\n90/3=30\n", "90/3=30,1+30=31")]
    together, alone = vae.tokenize(blocks), vae.tokenize(blocks[:1])
    torch.testing.assert_close(vae.encode(together).mean[:1], vae.encode(alone).mean, rtol=0, atol=1e-5)
    z, length = torch.randn(2, 2, 8, generator=torch.Generator().manual_seed(0)), alone.ids.shape[1]
    logits = vae.decode_logits(z, together)[:1, :length]
    torch.testing.assert_close(logits, vae.decode_logits(z[:1], alone), rtol=0, atol=1e-4)


def test_what_stands_before_a_block_is_read_only_where_the_settings_say_so():
    other = [Block("1,2,3:6\n", block.text) for block in BLOCKS]
    z = torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0))
    for reads_context in (False, True):
        vae = make(reads_context=reads_context)
        a, b = vae.tokenize(BLOCKS), vae.tokenize(other)
        assert torch.equal(vae.encode(a).mean, vae.encode(b).mean) is not reads_context
        assert torch.equal(vae.decode_logits(z, a), vae.decode_logits(z, b)) is not reads_context


def test_texts_are_decoded_as_the_teacher_forced_logits_say():
    vae = make(reads_context=True)
    z = 3 * torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0))
    texts = vae.decode(z, BEFORE)
    tokens = vae.tokenize([Block(block.before, text) for block, text in zip(BLOCKS, texts, strict=True)])
    best = vae.decode_logits(z, tokens).argmax(-1)
    written = tokens.valid & (tokens.ids != vae.decoder.eos)  # a text that was cut has no <eos> of its own
    assert written.sum() > 3
    assert torch.equal(best[written], tokens.ids[written])


def test_a_share_of_beta_weighs_the_kl_term():
    vae = make(beta=0.5)
    batch = vae.tokenize(BLOCKS)
    full, metrics = vae.loss(batch, torch.Generator().manual_seed(0))
    none, _ = vae.loss(batch, torch.Generator().manual_seed(0), beta_share=0.0)
    torch.testing.assert_close(full - none, 0.5 * metrics["loss/kl"])


def test_a_share_of_blocks_is_decoded_without_seeing_what_stands_before():
    vae = make(reads_context=True)
    batch = vae.tokenize(BLOCKS * 40)

    def text_loss(tokens, share):
        return vae.loss(tokens, torch.Generator().manual_seed(0), hidden_share=share)[1]["loss/reconstruction"]

    z = vae.encode(batch).sample(torch.Generator().manual_seed(0))
    blind = replace(batch, before_valid=torch.zeros_like(batch.before_valid))
    for share, seen in ((0.0, batch), (1.0, blind)):  # the encoder sees all, in either case
        logits = vae.decode_logits(z, seen)
        expected = token_cross_entropy(logits, batch.ids, batch.valid, reduction="sequence_sum_mean")
        torch.testing.assert_close(text_loss(batch, share), expected)
    assert (
        min(text_loss(batch, 0.0), text_loss(batch, 1.0))
        < text_loss(batch, 0.5)
        < max(text_loss(batch, 0.0), text_loss(batch, 1.0))
    )


def test_standardise_and_restore_are_inverse():
    vae = make()
    vae.latent_mean.normal_(generator=torch.Generator().manual_seed(0))
    vae.latent_std.uniform_(0.5, 2, generator=torch.Generator().manual_seed(1))
    z = torch.randn(3, 2, 8)
    torch.testing.assert_close(vae.scale.restore(vae.scale.standardise(z)), z)


def test_corruption_replaces_the_stated_share_of_real_tokens_only():
    ids = torch.full((400, 10), 99)
    valid = torch.ones_like(ids, dtype=torch.bool)
    valid[:, 7:] = False
    out = corrupt(ids, valid, 0.3, 20, torch.Generator().manual_seed(0))
    assert (out[:, 7:] == 99).all()
    assert (out[:, :7] != 99).float().mean().item() == pytest.approx(0.3, abs=0.03)


def test_saved_vae_loads_with_its_statistics(tmp_path):
    vae = make().eval()
    vae.latent_std.fill_(2.0)
    vae.save_pretrained(tmp_path)
    loaded = ThoughtVAE.from_pretrained(tmp_path)
    batch = vae.tokenize(BLOCKS)
    torch.testing.assert_close(loaded.encode(batch).mean, vae.encode(batch).mean, rtol=0, atol=1e-6)
    assert (loaded.latent_std == 2).all()


def test_loading_something_else_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        ThoughtVAE.from_pretrained(tmp_path)
    tiny_backbone().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a qwen3, not a ThoughtVAE"):
        read_config(tmp_path, "ThoughtVAE")


def test_a_latent_space_without_latents_is_refused():
    with pytest.raises(ValueError, match="at least 1 latent"):
        ThoughtVAEConfig(num_latents=0)
