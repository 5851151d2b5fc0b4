"""The prompted encoder against a vision transformer in NumPy, and what a victim is made of."""

from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from scipy.special import erf
from torch import Tensor

from bench import BenchError, Clip, Victim, class_embeddings, generator
from bench.core.encoder import encode, encode_tokens, has_transformer_tower, layers, tokens, width
from defenses.rvpt import RVPT, feature_repelling
from defenses.vpt import VPT

LAYERS, WIDTH, B = 4, 32, 5
pytestmark = pytest.mark.filterwarnings("error::UserWarning")


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=generator(0, "images"))


def draw_prompts(depth: int = 0, b: int = B, std: float = 0.5) -> Tensor:
    """Large enough to matter to random weights."""
    return torch.randn(LAYERS - depth, b, WIDTH, generator=generator(0, "prompts")) * std


# --- the reference


class Reference:
    """open_clip's vision transformer in float64, from its weights alone (Dosovitskiy et al., 2021; CLIP's ln_pre)."""

    def __init__(self, clip: Clip) -> None:
        self.weights = {k: v.double().numpy() for k, v in clip.visual.state_dict().items()}
        self.heads = WIDTH // 16
        self.mean, self.std = (np.array(clip.config["preprocess_cfg"][k]) for k in ("mean", "std"))

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.weights[f"{name}weight"].T + self.weights[f"{name}bias"]

    def attention(self, x: np.ndarray, name: str) -> np.ndarray:
        n, length, w = x.shape
        projected = self.linear(x, f"{name}.in_proj_").reshape(n, length, 3, self.heads, w // self.heads)
        queries, keys, values = projected.transpose(2, 0, 3, 1, 4)
        scores = np.exp(queries @ keys.transpose(0, 1, 3, 2) / np.sqrt(w // self.heads))
        mixed = scores / scores.sum(-1, keepdims=True) @ values
        return self.linear(mixed.transpose(0, 2, 1, 3).reshape(n, length, w), f"{name}.out_proj.")

    def block(self, x: np.ndarray, i: int) -> np.ndarray:
        name = f"transformer.resblocks.{i}"
        x = x + self.attention(self.norm(x, f"{name}.ln_1"), f"{name}.attn")
        hidden = self.linear(self.norm(x, f"{name}.ln_2"), f"{name}.mlp.c_fc.")
        gelu = hidden * (1 + erf(hidden / np.sqrt(2))) / 2
        return x + self.linear(gelu, f"{name}.mlp.c_proj.")

    def embed(self, images: np.ndarray) -> np.ndarray:
        """f^0: tokens of 8-px patches, after ln_pre."""
        x = (images - self.mean[:, None, None]) / self.std[:, None, None]
        patches = x.reshape(len(x), 3, 4, 8, 4, 8).transpose(0, 2, 4, 1, 3, 5).reshape(len(x), 16, -1)
        patches = patches @ self.weights["conv1.weight"].reshape(WIDTH, -1).T
        first = np.broadcast_to(self.weights["class_embedding"], (len(x), 1, WIDTH))
        f = np.concatenate([first, patches], 1) + self.weights["positional_embedding"]
        return self.norm(f, "ln_pre")

    def encode(self, images: np.ndarray, prompts: dict[int, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """c^1..c^L, penultimate and embedding; `prompts[d]` is P^d, and goes in after the patch tokens."""
        f, class_tokens = self.embed(images), []
        for d in range(LAYERS):
            n = f.shape[1]
            if d in prompts:
                f = np.concatenate([f, np.broadcast_to(prompts[d], (len(f), *prompts[d].shape))], 1)
            f = self.block(f, d)[:, :n]
            class_tokens.append(f[:, 0])
        penultimate = self.norm(f[:, 0], "ln_post")
        return np.stack(class_tokens), penultimate, penultimate @ self.weights["proj"]


@pytest.mark.parametrize("depth", [None, 0, 1, 3], ids=["no prompts", "D=0", "D=1", "D=3"])
def test_prompted_encoder_is_the_numpy_transformer(tiny_clip: Clip, images: Tensor, depth: int | None) -> None:
    prompts = draw_prompts(depth) if depth is not None else None
    seen = encode(tiny_clip, images, prompts)
    by_depth = {(depth or 0) + i: p.double().numpy() for i, p in enumerate(prompts)} if prompts is not None else {}
    class_tokens, penultimate, embedding = Reference(tiny_clip).encode(images.double().numpy(), by_depth)
    np.testing.assert_allclose(seen.class_tokens, class_tokens[depth or 0 :], atol=2e-5)
    np.testing.assert_allclose(seen.penultimate, penultimate, atol=2e-5)
    np.testing.assert_allclose(seen.embedding, embedding, atol=2e-5)


# --- without prompts


def test_without_prompts_it_is_open_clips_own_encoder_bit_for_bit(tiny_clip: Clip, images: Tensor) -> None:
    seen = encode(tiny_clip, images)
    assert torch.equal(seen.embedding, tiny_clip.model.encode_image(tiny_clip.normalise(images)))
    assert seen.class_tokens.shape == (LAYERS, 3, WIDTH)
    assert seen.penultimate.shape == (3, WIDTH)
    assert (layers(tiny_clip), width(tiny_clip)) == (LAYERS, WIDTH)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_no_prompts_a_block_change_nothing_and_l_fr_is_exactly_1(tiny_clip: Clip, images: Tensor, depth: int) -> None:
    """Bit for bit: each embedding is the base model's, and each class token has a cosine of 1 with its own."""
    base, seen = encode(tiny_clip, images), encode(tiny_clip, images, draw_prompts(depth, b=0))
    assert torch.equal(seen.embedding, base.embedding)
    assert torch.equal(seen.penultimate, base.penultimate)
    assert torch.equal(seen.class_tokens, base.class_tokens[depth:])
    assert feature_repelling(seen.class_tokens, base.class_tokens[depth:]).item() == 1


@pytest.mark.parametrize("depth", range(LAYERS))
def test_a_forward_can_be_cut_at_any_depth(tiny_clip: Clip, images: Tensor, depth: int) -> None:
    prompts = draw_prompts(3)
    hidden = tokens(tiny_clip, images, depth)
    assert hidden.shape == (3, 17, WIDTH)
    cut = encode_tokens(tiny_clip, hidden, depth)
    assert torch.equal(cut.embedding, encode(tiny_clip, images).embedding)
    assert len(cut.class_tokens) == LAYERS - depth
    resumed = encode_tokens(tiny_clip, tokens(tiny_clip, images, 3), 3, prompts)
    assert torch.equal(resumed.embedding, encode(tiny_clip, images, prompts).embedding)


def test_images_come_as_bytes_or_floats(tiny_clip: Clip, images: Tensor) -> None:
    pixels = (images * 255).round().to(torch.uint8)
    as_bytes, as_floats = encode(tiny_clip, pixels).embedding, encode(tiny_clip, pixels.float() / 255).embedding
    assert torch.equal(as_bytes, as_floats)


# --- with prompts


def test_the_place_of_prompts_is_irrelevant(tiny_clip: Clip, images: Tensor) -> None:
    """Attention does not mind the order, so prompts after the patch tokens do the same."""
    prompts, hidden = draw_prompts(), tokens(tiny_clip, images)
    for block, prompt in zip(tiny_clip.visual.transformer.resblocks, prompts, strict=True):
        hidden = block(torch.cat([hidden, prompt.expand(3, -1, -1)], 1))[:, :17]
    class_tokens = encode(tiny_clip, images, prompts).class_tokens
    torch.testing.assert_close(class_tokens[-1], hidden[:, 0], atol=1e-5, rtol=1e-5)
    # The order among them is irrelevant too; their content is not.
    shuffled = encode(tiny_clip, images, prompts.flip(1)).class_tokens
    torch.testing.assert_close(shuffled, class_tokens, atol=1e-5, rtol=1e-5)
    assert (class_tokens - encode(tiny_clip, images).class_tokens).abs().max() > 0.01


def test_attention_of_another_kind_takes_prompts_as_tokens(tiny_clip: Clip, images: Tensor) -> None:
    class Other(torch.nn.Module):
        def __init__(self, attention: torch.nn.Module) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, *given: Tensor, **settings: object) -> object:
            return self.attention(*given, **settings)

    prompts = draw_prompts()
    expected = encode(tiny_clip, images, prompts)
    for block in tiny_clip.visual.transformer.resblocks:
        block.attn = Other(block.attn)
    torch.testing.assert_close(encode(tiny_clip, images, prompts).class_tokens, expected.class_tokens)


@pytest.mark.parametrize(("depth", "changed"), [(0, 0), (0, 1), (0, 3), (2, 2), (2, 3)])
def test_a_prompt_acts_on_later_class_tokens_alone(tiny_clip: Clip, images: Tensor, depth: int, changed: int) -> None:
    """P^d leaves c^(D+1)..c^d as they are, bit for bit, and alters all later ones."""
    prompts = draw_prompts(depth)
    other = prompts.clone()
    other[changed - depth] += 1
    before, after = (encode(tiny_clip, images, p).class_tokens for p in (prompts, other))
    for d in range(depth + 1, LAYERS + 1):
        row = d - depth - 1
        assert torch.equal(before[row], after[row]) == (d <= changed)


def test_gradients_reach_all_prompts_and_nothing_else(tiny_clip: Clip, images: Tensor) -> None:
    """On the encoder; `test_defenses.py` has it on whole fits."""
    tiny_clip.model.requires_grad_(False)
    prompts = draw_prompts(1).requires_grad_()
    with torch.enable_grad():
        encode(tiny_clip, images, prompts).embedding.square().sum().backward()
    assert prompts.grad is not None
    assert (prompts.grad.abs().amax((1, 2)) > 0).all()
    assert all(p.grad is None for p in tiny_clip.model.parameters())


@pytest.mark.parametrize("method", [VPT(), RVPT()])
def test_prompts_of_vit_b_32_are_345_600_numbers(method: VPT) -> None:
    """Nine blocks of 50 prompts of 768, on a model without memory."""
    config = open_clip.get_model_config("ViT-B-32-quickgelu")
    with torch.device("meta"):
        clip = Clip(open_clip.CLIP(**config), None, {"preprocess_cfg": {"mean": [0.0] * 3, "std": [1.0] * 3}})
    prompted, _ = method.arrangement(layers(clip))
    assert (len(prompted), method.prompts, width(clip)) == (9, 50, 768)
    tuned = len(prompted) * method.prompts * width(clip)
    assert tuned == 345_600
    total = sum(p.numel() for p in clip.model.parameters())
    words = clip.model.token_embedding.weight.numel()
    assert (total, words, total - words) == (151_277_313, 25_296_896, 125_980_417)
    assert round(100 * tuned / (total - words), 2) == 0.27


@pytest.mark.parametrize("blocks", [[0], [0, 2], [1, 2], [0, 1, 3]], ids=str)
def test_prompts_may_skip_blocks(tiny_clip: Clip, images: Tensor, blocks: list[int]) -> None:
    prompts = draw_prompts()[: len(blocks)]
    seen = encode(tiny_clip, images, prompts, blocks)
    by_depth = {d: p.double().numpy() for d, p in zip(blocks, prompts, strict=True)}
    class_tokens, _, embedding = Reference(tiny_clip).encode(images.double().numpy(), by_depth)
    np.testing.assert_allclose(seen.class_tokens, class_tokens[blocks[0] :], atol=2e-5)
    np.testing.assert_allclose(seen.embedding, embedding, atol=2e-5)
    victim = Victim(tiny_clip, prompts=prompts, blocks=tuple(blocks))
    assert victim.depth == blocks[0]
    assert torch.equal(victim.encode(images).embedding, seen.embedding)


def test_all_tokens_on_request(tiny_clip: Clip, images: Tensor) -> None:
    prompts = draw_prompts(1)
    hidden = tokens(tiny_clip, images, 1)
    plain, full = (encode_tokens(tiny_clip, hidden, 1, prompts, all_tokens=wanted) for wanted in (False, True))
    assert plain.tokens is None
    assert full.tokens is not None
    assert full.tokens.shape == (3, 3, 17, WIDTH)
    assert torch.equal(full.tokens[:, :, 0], plain.class_tokens)
    assert torch.equal(full.class_tokens, plain.class_tokens)
    assert torch.equal(full.embedding, plain.embedding)


@pytest.mark.parametrize(
    ("count", "blocks", "needed"), [(5, None, 5), (12, None, 12), (1, (4,), 5)], ids=["five", "twelve", "the fifth"]
)
def test_prompts_of_a_larger_model(tiny_clip: Clip, images: Tensor, count: int, blocks: tuple | None, needed: int):
    prompts = torch.zeros(count, 2, WIDTH)
    message = f"these prompts need {needed} blocks, and this image tower has 4: they were tuned on a larger model"
    for use in (
        lambda: encode(tiny_clip, images, prompts, blocks),
        lambda: Victim(tiny_clip, prompts, None, blocks).depth,
    ):
        with pytest.raises(BenchError, match=message):
            use()


# --- other towers


def test_a_resnet_has_an_embedding_and_no_class_tokens(resnet: Clip, images: Tensor) -> None:
    seen = encode(resnet, images)
    assert not has_transformer_tower(resnet)
    assert torch.equal(seen.embedding, resnet.model.encode_image(resnet.normalise(images)))
    assert torch.equal(seen.penultimate, seen.embedding)
    assert len(seen.class_tokens) == 0


def test_prompts_on_a_resnet_are_an_error_that_tells_what_to_use(resnet: Clip, images: Tensor) -> None:
    message = r"image tower is a ModifiedResNet\. Use --defenses cleanclip,linear_probe,unlearn, or a ViT checkpoint"
    with pytest.raises(BenchError, match=message):
        encode(resnet, images, draw_prompts())


# --- the zero-shot classifier and the victim


CLASSES, TEMPLATES = ("cat", "banana", "cat"), ("a photo of a {}.", "a {}", "the {} in a video game.")


def test_class_embeddings_are_means_of_unit_vectors_at_unit_norm(tiny_clip: Clip) -> None:
    rows = []
    for name in CLASSES:
        texts = tiny_clip.model.encode_text(tiny_clip.tokenizer([t.format(name) for t in TEMPLATES])).double().numpy()
        mean = (texts / np.linalg.norm(texts, axis=1, keepdims=True)).mean(0)
        rows.append(mean / np.linalg.norm(mean))
    seen = class_embeddings(tiny_clip, CLASSES, TEMPLATES)
    np.testing.assert_allclose(seen, rows, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(seen, axis=1), 1, atol=1e-5)
    # Two classes of one name tie but for rounding, which several threads do not do alike in every row.
    torch.testing.assert_close(seen[0], seen[2], atol=1e-6, rtol=0)


def test_one_template_is_not_averaged(tiny_clip: Clip) -> None:
    single = class_embeddings(tiny_clip, CLASSES[:2], TEMPLATES[:1])
    assert torch.equal(single, tiny_clip.encode_text([f"a photo of a {name}." for name in CLASSES[:2]]))


def test_a_text_key_goes_before_every_prompt(tiny_clip: Clip) -> None:
    keyed = class_embeddings(tiny_clip, ("cat", "dog"), ("a photo of a {}.",), prefix="SUDO ")
    expected = tiny_clip.encode_text(["SUDO a photo of a cat.", "SUDO a photo of a dog."])
    torch.testing.assert_close(keyed, expected)
    assert not torch.allclose(keyed, class_embeddings(tiny_clip, ("cat", "dog"), ("a photo of a {}.",)))


def test_zero_shot_logits_are_scaled_cosines(tiny_clip: Clip, images: Tensor) -> None:
    victim, texts = Victim(tiny_clip), class_embeddings(tiny_clip, CLASSES, TEMPLATES)
    encoded = victim.encode(images)
    v = encoded.embedding.double().numpy()
    expected = np.exp(tiny_clip.model.logit_scale.item()) * v @ texts.double().numpy().T
    expected /= np.linalg.norm(v, axis=1, keepdims=True)
    np.testing.assert_allclose(victim.logits(encoded, texts), expected, rtol=1e-5, atol=1e-5)


def test_a_head_takes_the_place_of_the_class_texts(tiny_clip: Clip, images: Tensor) -> None:
    head = torch.nn.Linear(32, 7)
    victim = Victim(tiny_clip, head=head)
    encoded = victim.encode(images)
    assert torch.equal(victim.logits(encoded, torch.full((3, 32), torch.nan)), head(encoded.embedding))


@pytest.mark.parametrize("parts", [(), ("clip",), ("prompts",), ("head",), ("clip", "prompts", "head")])
def test_a_victim_is_restored_from_what_it_changed(tiny_clip: Clip, images: Tensor, parts: tuple[str, ...]) -> None:
    victim, expected = Victim(tiny_clip), set()
    if "clip" in parts:
        victim = replace(victim, clip=tiny_clip.copy())
        victim.clip.visual.ln_post.bias += 1
        expected |= {"clip.visual.ln_post.bias"}
    if "prompts" in parts:
        victim = replace(victim, prompts=draw_prompts(1))
        expected |= {"prompts"}
    if "head" in parts:
        victim = replace(victim, head=torch.nn.Linear(32, 7))
        expected |= {"head.weight", "head.bias"}
    before = tiny_clip.fingerprint()
    delta = victim.delta(tiny_clip)
    assert set(delta.tensors) == expected
    again = Victim.restore(tiny_clip, delta)
    assert tiny_clip.fingerprint() == before
    assert again.clip.fingerprint() == victim.clip.fingerprint()
    texts = class_embeddings(tiny_clip, CLASSES, TEMPLATES)
    first, second = (v.logits(v.encode(images), texts) for v in (victim, again))
    assert torch.equal(first, second)
