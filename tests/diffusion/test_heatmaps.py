"""Heat maps against a literal implementation: projections caught by hooks, softmax by hand, term by term."""

import math

import pytest
import torch
import torch.nn.functional as F

from domainfusion.diffusion.heatmaps import (
    AttentionRecorder,
    generation_heat_maps,
    heat_maps,
    label_tokens,
    merge_tokens,
    prompt_words,
    recording,
)
from domainfusion.diffusion.image_to_image import image_to_image
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.errors import LDMError, UsageError

PASSES, HEADS = 6, 2
PROMPTS = ["a cat, flat", "building house"]


@pytest.fixture
def images():
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1


@pytest.fixture
def two_levels(exact_ldm):
    """The tiny LDM with an untrained U-Net that attends to the prompt at two resolutions."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=32, attention_head_dim=HEADS, norm_num_groups=16,
    )  # fmt: skip
    return LatentDiffusion(
        exact_ldm.vae, unet, exact_ldm.text_encoder, exact_ldm.tokenizer, exact_ldm.scheduler, dtype=torch.float64
    )


def cross_attention(unet):
    """The layers `attn2` of the blocks on the way down and up, by their names in diffusers."""
    return [
        layer for name, layer in unet.named_modules() if name.endswith("attn2") and not name.startswith("mid_block")
    ]


def literal_terms(ldm, noisy, t, embeds, size):
    """The upsampled map (L, size, size) of every layer and head, of one pass over one image."""
    caught, hooks = {}, []
    layers = cross_attention(ldm.unet)
    for number, layer in enumerate(layers):
        for name in ("to_q", "to_k"):
            key = (number, name)
            hooks.append(
                getattr(layer, name).register_forward_hook(
                    lambda module, given, output, key=key: caught.__setitem__(key, output[0])
                )
            )
    ldm.predict_noise(noisy, torch.tensor([t]), embeds)
    for hook in hooks:
        hook.remove()
    terms = []
    for number, layer in enumerate(layers):
        query, key = caught[number, "to_q"], caught[number, "to_k"]  # (places, D), (L, D)
        width = query.shape[1] // layer.heads
        side = math.isqrt(len(query))
        for head in range(layer.heads):
            q, k = (part[:, head * width : (head + 1) * width] for part in (query, key))
            scores = (q @ k.T) / math.sqrt(width)
            shares = scores.exp() / scores.exp().sum(1, keepdim=True)
            grid = shares.T.reshape(1, -1, side, side)
            terms.append(F.interpolate(grid, size=(size, size), mode="bicubic", align_corners=False)[0])
    return terms


@pytest.mark.parametrize(("model", "layers"), [("exact_ldm", 1 + 2), ("two_levels", 1 + 1 + 2 + 2)])
def test_maps_are_the_mean_of_all_upsampled_probabilities(model, layers, images, request):
    exact_ldm = request.getfixturevalue(model)
    times, draws = (0.1, 0.5, 0.8), 2
    found = heat_maps(exact_ldm, images, PROMPTS, times=times, draws=draws, seed=7, batch_size=5)
    noise = torch.randn(PASSES, 4, 8, 8, generator=torch.Generator().manual_seed(7)).double()
    alphas = exact_ldm.scheduler.alphas_cumprod.double()
    for i, prompt in enumerate(PROMPTS):
        latents = exact_ldm.encode(images[i : i + 1])
        embeds = exact_ldm.prompt_embeds([prompt])
        terms = []
        for number in range(PASSES):
            t = round(times[number // 2] * 999)
            noisy = alphas[t].sqrt() * latents + (1 - alphas[t]).sqrt() * noise[number]
            terms += literal_terms(exact_ldm, noisy, t, embeds, 16)
        assert len(terms) == PASSES * HEADS * layers  # of layers, those on the way down and up
        expected = torch.stack(terms).mean(0).clamp_min(0)
        torch.testing.assert_close(found[i], expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found[0, 2], found[1, 2], rtol=1e-3)  # another image and prompt, another map


def test_every_place_gives_one_unit_of_attention(exact_ldm, images):
    found = heat_maps(exact_ldm, images, PROMPTS, times=(0.3,), draws=1)
    assert found.shape == (2, 12, 16, 16)
    torch.testing.assert_close(found.sum(1), torch.ones_like(found.sum(1)), rtol=1e-4, atol=1e-4)


def test_recording_changes_nothing_and_is_undone(exact_ldm, images):
    layers = cross_attention(exact_ldm.unet)
    before = [layer.processor for layer in layers]
    z, t, embeds = torch.randn(2, 4, 8, 8).double(), torch.tensor([10, 700]), exact_ldm.prompt_embeds(PROMPTS)
    with torch.no_grad():
        plain = exact_ldm.predict_noise(z, t, embeds)
        with recording(exact_ldm.unet, AttentionRecorder(2, (8, 8))) as recorder:
            recorded = exact_ldm.predict_noise(z, t, embeds)
    assert torch.equal(plain, recorded)
    assert recorder.terms.tolist() == [6.0, 6.0]
    bad = torch.randn(2, 4, 8, 8).double()
    with pytest.raises(RuntimeError), recording(exact_ldm.unet, AttentionRecorder(2, (8, 8))):
        exact_ldm.predict_noise(bad, t, embeds[..., :5])  # embeddings of another width
    assert [layer.processor for layer in layers] == before


def test_maps_along_a_generation_are_of_the_prompted_passes(exact_ldm, images):
    options = {"strength": 0.8, "steps": 1, "solver": "ddim"}

    def make(guidance):
        return generation_heat_maps(
            exact_ldm, images, PROMPTS, guidance_scale=guidance, generator=torch.Generator().manual_seed(3), **options
        )

    (made, guided), (_, plain) = make(4.0), make(1.0)
    torch.testing.assert_close(guided, plain)  # one step: the same prompted pass, whatever is added to its outcome
    alone = image_to_image(
        exact_ldm, images, PROMPTS, torch.full((2, 1), 0.8), steps=1, solver="ddim", guidance_scale=4.0,
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    torch.testing.assert_close(made, alone[:, 0])
    torch.testing.assert_close(guided.sum(1), torch.ones(2, 16, 16, dtype=guided.dtype), rtol=1e-4, atol=1e-4)


def test_layers_of_latents_that_are_not_square_find_their_shape():
    recorder = AttentionRecorder(1, (5, 7))
    for places in (35, 12, 4):  # 5 x 7, 3 x 4, 2 x 2
        recorder.add(torch.full((1, 2, places, 3), 1 / 3))
    assert set(recorder.sums) == {(5, 7), (3, 4), (2, 2)}
    torch.testing.assert_close(recorder.maps((10, 14)), torch.full((1, 3, 10, 14), 1 / 3))
    with pytest.raises(LDMError, match="33 places"):
        recorder.add(torch.zeros(1, 2, 33, 3))


def test_a_unet_without_cross_attention_is_refused():
    with (
        pytest.raises(LDMError, match="no cross-attention"),
        recording(torch.nn.Linear(2, 2), AttentionRecorder(1, (2, 2))),
    ):
        pass


def test_words_have_their_tokens(exact_ldm):
    tokenizer = exact_ldm.tokenizer
    words = prompt_words(tokenizer, "A cat, zq")
    assert [word.text for word in words] == ["A", "cat", ",", "zq"]
    ids = tokenizer("A cat, zq").input_ids
    for word in words:
        assert tokenizer.decode([ids[k] for k in word.tokens]).strip() == word.text.lower()
    assert len(words[3].tokens) == 2  # letters that the tokenizer has no word for
    assert [k for word in words for k in word.tokens] == list(range(1, len(ids) - 1))


def test_a_label_is_found_where_the_template_has_it(exact_ldm):
    tokenizer = exact_ldm.tokenizer
    prompt, tokens = label_tokens(tokenizer, "house, {label} flat", "house cat")
    assert prompt == "house, house cat flat"
    assert tokens == (3, 4)  # start, house, the comma, then the label
    maps = torch.arange(12.0).view(12, 1, 1).expand(12, 2, 2)
    assert torch.equal(merge_tokens(maps, tokens), torch.full((2, 2), 7.0))


@pytest.mark.parametrize(
    ("template", "label", "message"),
    [("{label}", "q w r t z p s d f g h", "has 13 tokens, start and end among them, and the LDM reads 12"),
     ("a {label}", " ", "no word for the label")],
)  # fmt: skip
def test_labels_that_the_ldm_cannot_read_are_refused(exact_ldm, template, label, message):
    with pytest.raises(UsageError, match=message):
        label_tokens(exact_ldm.tokenizer, template, label)
