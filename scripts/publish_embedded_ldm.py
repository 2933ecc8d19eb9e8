"""Puts a pretrained pipeline into the package as the embedded LDM, with its model card made from measured figures.

    python scripts/publish_embedded_ldm.py runs/ldm runs/judge

The first folder is what `domainfusion pretrain` wrote, the second what `domainfusion judge pictograms --ldm
runs/ldm/pipeline` measured. Writes `src/domainfusion/diffusion/weights/`, and adds the training's losses to
`training.json` there, which remembers all rounds of training (`pretrain --init embedded` goes on from the last).
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image
from safetensors import safe_open

WEIGHTS = Path(__file__).parents[1] / "src" / "domainfusion" / "diffusion" / "weights"

CARD = """\
# The embedded latent diffusion model

A small text-to-image latent diffusion model in Stable Diffusion's own layout (diffusers folder: `AutoencoderKL`,
`CLIPTextModel` with its own byte-pair tokenizer, `UNet2DConditionModel`, SD v1's noise schedule, ε-prediction). It
draws emoji and icons at 64 x 64 pixels. `StableDiffusionImg2ImgPipeline.from_pretrained` loads this folder with no
code of ours; `domainfusion` uses it when `--ldm` is `embedded`.

| part | parameters | what it is |
|---|---|---|
{parts}

{megabytes:.0f} MB in all. Latents: {channels} channels of {side} x {side}, scaled to unit variance.

## Data

{images:,} captioned drawings of 64 x 64 pixels from {styles} sets, weighted towards coloured drawings of things; about
2 % are held out by a hash of their pixels. Captions join the drawing's name, its Unicode subgroup in words ("animal
mammal", "vehicle transport ground") and the style words of its set, each dropped at random; monochrome drawings are
recoloured half of the time, and the caption then names the colours.
`styles.json` lists the style words that prompts of `domainfusion` draw from: those of the sets in which at least half
of the categories are drawn. The model knows the words of the other sets too.
`scripts/build_embedded_corpus.py` packs the corpus.

No drawing of the Pictograms benchmark is among them (a test compares hashes of all images), and the families that the
benchmark is made of (Fluent, Twemoji, Symbola, Unifont, Open Clip Art) were left out as a whole. **What is near them
all the same:** `pixelarticons` and `streamline pixel` are drawn on a coarse grid as the style `pixel` is, and black
glyph sets (`noto mono`, `emojione bw`, `game icons`, ...) resemble `ink`. Prompts never use style words that name the
target, but the model has seen such drawings; read results on `pixel` and `ink` with that in mind.

It has also seen, in Noto's and the other families' hands, the same *kinds of thing* as the benchmark shows, down to the
same Unicode characters, with captions that name their kind. Its candidates can carry that knowledge to a classifier, as
Stable Diffusion's would; what strict splits guarantee is that no drawing *of the benchmark* is known, not that no
elephant is.

| set | licence |
|---|---|
| Noto Emoji, and its classic version (Google) | Apache-2.0 |
| Noto Emoji monochrome (Google) | OFL-1.1 |
| EmojiOne 2, coloured and black (JoyPixels) | CC BY 4.0 |
| FxEmojis (Mozilla) | CC BY 4.0 |
| Material Design Icons, Material Symbols Sharp, IconPark, Carbon | Apache-2.0 |
| Tabler, Phosphor, Health Icons, Pixelarticons, Meteocons, Flat Color Icons | MIT |
| Solar, Streamline (freehand, ultimate, plump, pixel) | CC BY 4.0 |
| Game Icons | CC BY 3.0 |
| Maki | CC0 |

The drawings are their makers'; only weights are distributed here.

## Training

Autoencoder: {vae}. Denoiser: {unet} (a round that follows another starts from its
averaged weights). Min-SNR weights (γ = 5), captions dropped at p = {dropout}, exponential moving average {ema}, bf16
autocast, on two CPU cores. The options of the last round are in `pretrain.toml`, the losses of all in `training.json`;
`domainfusion pretrain` is the command.

![losses](training.png)

## What it is worth

Measured by `domainfusion judge pictograms`, on {judged} images of the benchmark. The judge of "recognised" is an ERM
classifier trained on all five styles, on images it was not trained on; style moved is the median KL divergence
between channel statistics (Gaussian) of image and candidate.

- Reconstruction: PSNR {held_psnr:.1f} dB on held-out training drawings ({faded:.1f} dB of the
  same at a contrast of 0.2), {psnr:.1f} dB on the benchmark.
- Mean squared error of the predicted noise on held-out drawings, all timesteps: {held_mse:.3f}.

{candidates}

How often the slope of the true label lies below that of a random wrong one (chance 50 %), at p = 0.5, 8 draws. On
shared draws the three residuals rank labels alike, because what they subtract does not depend on the label:

{slopes}

Rows from above: images of the benchmark, then their candidates at strength 0.4, 0.5, 0.6, 0.7, 0.8, 0.9.

![candidates](candidates.png)

Text to image, 20 steps, guidance 4:

![samples](samples.png)

## Limits

It was trained for hours on two cores, not for weeks on many GPUs: fine structure is blurred, and at high strength
many candidates are recognisable as a kind of thing rather than as the thing itself. It knows icons and emoji and
nothing else; for photographs use Stable Diffusion.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pretrained", type=Path)
    parser.add_argument("judged", type=Path)
    parser.add_argument("--corpus", type=int, nargs=2, default=(40_425, 24), help="images and sets")
    arguments = parser.parse_args()
    publish(arguments.pretrained, arguments.judged, tuple(arguments.corpus))


def publish(pretrained: Path, judged: Path, corpus: tuple[int, int]) -> None:
    """Copy the pipeline and write its card."""
    known = WEIGHTS / "training.json"
    rounds = json.loads(known.read_text()) if known.exists() else []
    rounds += read_rounds(pretrained)
    old = Path(tempfile.mkdtemp()) / "samples.png"  # of the denoiser, which may not have been trained on
    shutil.copy(WEIGHTS / "samples.png", old)
    shutil.rmtree(WEIGHTS, ignore_errors=True)
    shutil.copytree(pretrained / "pipeline", WEIGHTS)
    for path in WEIGHTS.rglob("config.json"):  # where a part was loaded from is no fact about it
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    shutil.copy(pretrained / "pretrain.toml", WEIGHTS)
    known.write_text(json.dumps(rounds), encoding="utf-8")
    figures = json.loads((judged / "judge.json").read_text())
    draw_curves(rounds, WEIGHTS / "training.png")
    drawn = {"candidates.png": judged / "candidates.png", "samples.png": newest_samples(pretrained) or old}
    for name, source in drawn.items():
        with Image.open(source) as image:
            image.convert("RGB").save(WEIGHTS / name, optimize=True)
    (WEIGHTS / "README.md").write_text(write_card(rounds, figures, corpus), encoding="utf-8")


def read_rounds(pretrained: Path) -> list[dict[str, Any]]:
    """One round for each stage that was trained: {"stage", "steps", "batch", "training", "held_out"}.

    The last two are [[step, value], …]: mean squared errors, every fifth record; PSNR (autoencoder) or mean squared
    error (denoiser) on held-out images.
    """
    options = tomllib.loads((pretrained / "pretrain.toml").read_text())
    records = [json.loads(line) for line in (pretrained / "metrics.jsonl").read_text().splitlines()]
    rounds = []
    for stage, batch, held in (
        ("autoencoder", "vae_batch_size", "held_out_psnr"), ("denoiser", "unet_batch_size", "held_out_mse"),
    ):  # fmt: skip
        mine = [record for record in records if record["stage"] == stage]
        if mine:
            training = [[r["step"], round(r["mse"], 5)] for r in mine if "mse" in r][::5]
            marks = [[r["step"], round(r[held], 5)] for r in mine if held in r]
            faded = [r["held_out_faded_psnr"] for r in mine if "held_out_faded_psnr" in r]
            rounds.append({"stage": stage, "steps": mine[-1]["step"], "batch": options[batch],
                           "training": training, "held_out": marks,
                           **({"held_out_faded": round(faded[-1], 3)} if faded else {})})  # fmt: skip
    return rounds


def newest_samples(pretrained: Path) -> Path | None:
    return max(pretrained.glob("samples-*.png"), default=None)


def draw_curves(rounds: list[dict[str, Any]], path: Path) -> None:
    """Training and held-out curves of both stages, over the images seen in all rounds."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), dpi=110, layout="constrained")
    for axis, stage, label in ((axes[0], "autoencoder", "held-out PSNR, dB"), (axes[1], "denoiser", "held-out MSE")):
        other = axis.twinx() if stage == "autoencoder" else axis
        before = 0
        for item in rounds:
            if item["stage"] != stage:
                continue
            for points, shown, style in (
                (item["training"], axis, {"color": "0.7", "linewidth": 0.8, "label": "training MSE"}),
                (item["held_out"], other, {"color": "tab:blue", "marker": "o", "markersize": 3, "label": label}),
            ):
                if points:
                    images = [(before + step * item["batch"]) / 1000 for step, _ in points]
                    shown.plot(images, [value for _, value in points], **style)
            before += item["steps"] * item["batch"]
        axis.set(xlabel="thousand images", title=stage)
        if axis.get_lines():
            axis.set(yscale="log", ylabel="MSE")
        else:
            axis.set_yticks([])
        if other is not axis:
            other.set_ylabel(label)
        lines = {line.get_label(): line for drawn in {axis, other} for line in drawn.get_lines()}
        axis.legend(lines.values(), lines.keys(), loc="best", frameon=False)
    figure.savefig(path)
    plt.close(figure)


def write_card(rounds: list[dict[str, Any]], figures: dict[str, Any], corpus: tuple[int, int]) -> str:
    def parameters(part: str) -> str:
        total = 0
        for path in (WEIGHTS / part).glob("*.safetensors"):
            with safe_open(str(path), "pt") as file:
                for key in sorted(file.keys()):
                    size = 1
                    for length in file.get_slice(key).get_shape():
                        size *= length
                    total += size
        return f"{total / 1e6:.1f} M"

    options = tomllib.loads((WEIGHTS / "pretrain.toml").read_text())
    unet = json.loads((WEIGHTS / "unet" / "config.json").read_text())
    parts = [
        ("`vae`", parameters("vae"), f"widths {options['vae_channels']}"),
        ("`unet`", parameters("unet"), f"widths {options['unet_channels']}, cross-attention at every level"),
        ("`text_encoder`", parameters("text_encoder"), f"{options['text_layers']} layers of {options['text_width']}"),
    ]
    candidates = ["| pictures | recognised % | style moved | saturation |", "|---|---|---|---|",
                  f"| as stored | {figures['raw_recognised']:.1f} | | |",
                  f"| reconstructed | {figures['reconstruction_recognised']:.1f} | | |"]  # fmt: skip
    candidates += [
        f"| candidates, strength {c['strength']} | {c['recognised']:.1f} | {c['style_moved']:.2f} "
        f"| {c['saturation']:.2f} |"
        for c in figures["candidates"]
    ]
    slopes = ["| residual | true below wrong % | mean slope | mean size |", "|---|---|---|---|"]
    slopes += [
        f"| {name} | {s['true_below_wrong']:.1f} ± {s['standard_error']:.1f} | {s['mean']:.4f} | {s['mean_size']:.4f} |"
        for name, s in figures["slopes"].items()
    ]
    last, steps = {}, {}
    for stage in ("autoencoder", "denoiser"):
        mine = [item for item in rounds if item["stage"] == stage]
        last[stage] = mine[-1]["held_out"][-1][1]
        steps[stage] = ", then ".join(f"{item['steps']:,} steps of {item['batch']}" for item in mine)
    faded = [item for item in rounds if item["stage"] == "autoencoder"][-1]["held_out_faded"]
    size = sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file())
    return CARD.format(
        parts="\n".join("| " + " | ".join(part) + " |" for part in parts), megabytes=size / 1e6,
        channels=unet["in_channels"], side=unet["sample_size"], images=corpus[0],
        styles=corpus[1],
        vae=steps["autoencoder"], unet=steps["denoiser"],
        dropout=options["caption_dropout"], ema=options["ema"], judged=figures["images"],
        held_psnr=last["autoencoder"], faded=faded, psnr=figures["psnr"], held_mse=last["denoiser"],
        candidates="\n".join(candidates), slopes="\n".join(slopes),
    )  # fmt: skip


if __name__ == "__main__":
    main()
