"""Reference tensors for the UNet, the VAE, DDIM, DDPO's log-probabilities and LoRA.

    python tests/reference/make_diffusion.py [PIPELINE_FOLDER]

Needs torch 2.11.0, diffusers 0.42.1, peft 0.21.2 and trl 0.11.4. The networks' weights are not stored: both sides draw
them by the same rule (`draw`, and `drawn` in models/src/tests/mod.rs). `diffusion_pipeline.safetensors` belongs to the
shipped model, PIPELINE_FOLDER (default models/weights/tiny-art/diffusion), and is written again when that changes.
"""

import copy
import importlib.util
import json
import sys
import tempfile
import types
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils.torch_utils import randn_tensor
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

HERE = Path(__file__).parent
torch.set_num_threads(1)


def draw(module, seed):
    """Fills a module with random tensors in the order of their names, from one generator, scaled by kind; the weights
    have the variance of PyTorch's own initialization."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sorted(module.state_dict().items()):
            normal = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim > 1:
                normal /= (3 * tensor.numel() / tensor.shape[0]) ** 0.5
            else:
                normal *= 0.1
                if name.endswith("weight"):
                    normal += 1
            tensor.copy_(normal)
    return module.eval()


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def config_json(model):
    return json.dumps({"_class_name": type(model).__name__, **model.config}, default=str)


UNETS = {
    # As in SD 1: projections are convolutions, one number of heads for all stages; no size divides evenly.
    "sd1": dict(
        block_out_channels=(32, 48, 64), layers_per_block=1, attention_head_dim=4, cross_attention_dim=24,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), norm_num_groups=8, sample_size=8,
    ),
    # As in SD 2: projections are linear layers, a number of heads for each stage; stages of different depth.
    "sd2": dict(
        block_out_channels=(32, 64), layers_per_block=(2, 1), attention_head_dim=(2, 4), cross_attention_dim=40,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=16, use_linear_projection=True, transformer_layers_per_block=(2, 1), sample_size=8,
    ),
    # As in SD 2.1: attention in f32; and the rarer keys.
    "upcast": dict(
        block_out_channels=(32, 32), layers_per_block=1, attention_head_dim=(4, 2), cross_attention_dim=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8, use_linear_projection=True, upcast_attention=True, flip_sin_to_cos=False, freq_shift=1,
        norm_eps=1e-6, time_embedding_dim=96, in_channels=3, out_channels=5, sample_size=8,
    ),
}
SIZES = {"sd1": (7, 5), "sd2": (8, 8), "upcast": (9, 6)}


def make_unets():
    tensors, metadata = {}, {}
    for i, (name, arguments) in enumerate(UNETS.items()):
        unet = draw(UNet2DConditionModel(**arguments), 100 + i)
        latents = normal(1, 3, unet.config.in_channels, *SIZES[name])
        text = normal(2, 3, 6, unet.config.cross_attention_dim)
        timesteps = torch.tensor([1, 381, 958])
        with torch.no_grad():
            out = unet(latents, timesteps, text).sample
        tensors |= {f"{name}.latents": latents, f"{name}.text": text, f"{name}.timesteps": timesteps, f"{name}.out": out}
        metadata[name] = config_json(unet)
    save_file(tensors, HERE / "diffusion_unet.safetensors", metadata)


def make_vae():
    vae = AutoencoderKL(
        block_out_channels=(16, 32), layers_per_block=2, norm_num_groups=8, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )
    draw(vae, 200)
    images, latents = normal(3, 2, 3, 16, 24).clamp(-1, 1), normal(4, 2, 4, 8, 12)
    with torch.no_grad():
        posterior = vae.encode(images).latent_dist
        decoded = vae.decode(latents).sample
        # Tiles of 16 x 16 latents, 12 apart.
        large_latents = normal(5, 1, 4, 14, 31)
        vae.enable_tiling()
        tiled = vae.decode(large_latents).sample
    tensors = dict(images=images, latents=latents, mean=posterior.mean, logvar=posterior.logvar, decoded=decoded,
                   large_latents=large_latents, tiled=tiled)
    save_file({k: v.contiguous() for k, v in tensors.items()}, HERE / "diffusion_vae.safetensors", {"vae": config_json(vae)})


STABLE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
SCHEDULERS = {
    "epsilon": dict(STABLE, clip_sample=False, set_alpha_to_one=False),
    "v_prediction": dict(STABLE, clip_sample=False, set_alpha_to_one=False, prediction_type="v_prediction"),
    "sample": dict(clip_sample=False, prediction_type="sample", timestep_spacing="linspace"),
    "clipped": dict(beta_schedule="squaredcos_cap_v2", clip_sample=True, clip_sample_range=1.5, steps_offset=1),
    "zero_snr": dict(
        STABLE, clip_sample=False, set_alpha_to_one=True, prediction_type="v_prediction", timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    ),
}
STEPS = 7


def make_ddim():
    """Trajectories of a small UNet with guidance, at eta 0 and 1, with given noise."""
    unet = draw(UNet2DConditionModel(**UNETS["sd2"]), 101)
    latents, text, null = normal(5, 2, 4, 8, 8), normal(6, 2, 6, 40), normal(7, 1, 6, 40)
    noise = normal(8, STEPS, 2, 4, 8, 8)
    tensors = dict(latents=latents, text=text, null=null, noise=noise)
    metadata = {"unet": config_json(unet)}
    for name, arguments in SCHEDULERS.items():
        scheduler = DDIMScheduler(**arguments)
        metadata[name] = config_json(scheduler)
        for spacing_steps in (1, 7, 30, 50):
            scheduler.set_timesteps(spacing_steps)
            tensors[f"{name}.timesteps.{spacing_steps}"] = scheduler.timesteps
        tensors[f"{name}.alphas_cumprod"] = scheduler.alphas_cumprod
        scheduler.set_timesteps(STEPS)
        # At eta 1 the first step of a zero-SNR schedule is the square root of a rounding error: diffusers returns NaN.
        for eta in (0,) if name == "zero_snr" else (0, 1):
            sample, trajectory = latents, [latents]
            for i, t in enumerate(scheduler.timesteps):
                with torch.no_grad():
                    both = unet(torch.cat([sample, sample]), t, torch.cat([null.expand(2, -1, -1), text])).sample
                without, guided = both.chunk(2)
                predicted = without + 2.5 * (guided - without)
                sample = scheduler.step(predicted, int(t), sample, eta=float(eta), variance_noise=noise[i]).prev_sample
                trajectory.append(sample)
            tensors[f"{name}.eta{eta}"] = torch.stack(trajectory)
    clean, t = normal(9, 3, 4, 8, 8), torch.tensor([0, 499, 999])
    noisy = DDIMScheduler(**SCHEDULERS["epsilon"]).add_noise(clean, normal(10, 3, 4, 8, 8), t)
    tensors |= {"add_noise.clean": clean, "add_noise.noise": normal(10, 3, 4, 8, 8), "add_noise.timesteps": t, "add_noise.out": noisy}
    pndm = PNDMScheduler(**{k: v for k, v in STABLE.items()}, skip_prk_steps=True)
    metadata["pndm"] = config_json(pndm)
    from_pndm = DDIMScheduler.from_config(pndm.config, clip_sample=False)
    from_pndm.set_timesteps(30)
    tensors["pndm.timesteps.30"] = from_pndm.timesteps
    save_file({k: v.contiguous() for k, v in tensors.items()}, HERE / "diffusion_ddim.safetensors", metadata)


def trl_scheduler_step():
    """TRL's `scheduler_step`, loaded from its file alone: the package cannot be imported with this diffusers."""
    root = Path(importlib.util.find_spec("trl").origin).parent
    for name in ("trl_alone", "trl_alone.core", "trl_alone.models", "trl_alone.models.sd_utils", "trl_alone.import_utils"):
        module = sys.modules[name] = types.ModuleType(name)
        module.__path__ = []
        module.__getattr__ = lambda _: (lambda *a, **k: None)
    sys.modules["trl_alone.core"].randn_tensor = randn_tensor
    spec = importlib.util.spec_from_file_location("trl_alone.models.modeling_sd_base", root / "models/modeling_sd_base.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.scheduler_step


def kl_divergence(step, scheduler, t, sample, output, other):
    """The divergence between TRL's steps for two outputs, a mean over the elements, in f64."""
    module = sys.modules[step.__module__]
    precise = copy.deepcopy(scheduler)
    precise.alphas_cumprod = scheduler.alphas_cumprod.double()

    def distribution(output):
        """The mean and the standard deviation, from the steps with noise of zeros and of ones."""
        taken = []
        for noise in (torch.zeros, torch.ones):
            module.randn_tensor = lambda shape, dtype, **_: noise(shape, dtype=dtype)
            taken.append(step(precise, output.double(), t.reshape(1), sample.double(), 1.0).latents)
        module.randn_tensor = randn_tensor
        return torch.distributions.Normal(taken[0], taken[1] - taken[0])

    return torch.distributions.kl_divergence(distribution(output), distribution(other)).mean(dim=(1, 2, 3))


def make_log_probs():
    step = trl_scheduler_step()
    tensors, metadata = {}, {}
    for name in ("epsilon", "v_prediction", "clipped"):
        scheduler = DDIMScheduler(**SCHEDULERS[name])
        scheduler.set_timesteps(STEPS)
        output, sample = normal(11, STEPS, 4, 8, 8), normal(12, STEPS, 4, 8, 8)
        off_policy = output + 0.05 * normal(13, STEPS, 4, 8, 8)
        prev, log_probs, off, kl = [], [], [], []
        for i, t in enumerate(scheduler.timesteps):
            row = slice(i, i + 1)
            torch.manual_seed(i)
            result = step(scheduler, output[row], t.reshape(1), sample[row], 1.0)
            prev.append(result.latents)
            log_probs.append(result.log_probs)
            off.append(step(scheduler, off_policy[row], t.reshape(1), sample[row], 1.0, prev_sample=prev[-1]).log_probs)
            kl.append(kl_divergence(step, scheduler, t, sample[row], off_policy[row], output[row]))
        metadata[name] = config_json(scheduler)
        tensors |= {
            f"{name}.output": output, f"{name}.off_policy_output": off_policy, f"{name}.sample": sample,
            f"{name}.prev_sample": torch.cat(prev), f"{name}.log_probs": torch.cat(log_probs),
            f"{name}.off_policy_log_probs": torch.cat(off), f"{name}.kl": torch.cat(kl),
        }
    save_file(tensors, HERE / "diffusion_log_probs.safetensors", metadata)


def make_lora():
    """A peft adapter with alpha != rank: its output, its gradients, and the file that diffusers writes for it."""
    unet = draw(UNet2DConditionModel(**UNETS["sd2"]), 101)
    unet.requires_grad_(False)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=4, lora_alpha=6, init_lora_weights="gaussian", target_modules=targets))
    lora = get_peft_model_state_dict(unet)
    with torch.no_grad():
        for i, (_, tensor) in enumerate(sorted(lora.items())):
            tensor.copy_(0.1 * normal(300 + i, *tensor.shape))
    latents, text, timesteps = normal(14, 2, 4, 8, 8), normal(15, 2, 6, 40), torch.tensor([20, 700])
    out = unet(latents, timesteps, text).sample
    weight = normal(16, *out.shape)
    (out * weight).sum().backward()
    gradients = {}
    for name, parameter in unet.named_parameters():
        if parameter.grad is not None and ("mid_block" in name or "down_blocks.0.attentions.0" in name):
            gradients["grad.unet." + name.replace(".default", "")] = parameter.grad
    assert gradients
    with torch.no_grad():
        unet.disable_adapters()
        base = unet(latents, timesteps, text).sample
        unet.enable_adapters()
    tensors = dict(latents=latents, text=text, timesteps=timesteps, weight=weight, out=out.detach(), base=base, **gradients)
    save_file(tensors, HERE / "diffusion_lora.safetensors", {"unet": config_json(unet)})

    from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
    from diffusers.training_utils import _collate_lora_metadata

    StableDiffusionPipeline.save_lora_weights(HERE, unet_lora_layers=lora, **_collate_lora_metadata({"unet": unet}))
    (HERE / LORA_WEIGHT_NAME_SAFE).rename(HERE / "diffusers_lora.safetensors")


def make_lora_patterns():
    """A rank-stabilized peft adapter whose layers differ in rank and alpha, as a file written by peft."""
    unet = draw(UNet2DConditionModel(**UNETS["sd2"]), 101)
    config = LoraConfig(
        r=4, lora_alpha=6, use_rslora=True, init_lora_weights="gaussian",
        target_modules=["mid_block.attentions.0.transformer_blocks.0.attn2." + part for part in ("to_q", "to_k", "to_v")],
        rank_pattern={"attn2.to_q": 2}, alpha_pattern={"attn2.to_q": 5, "attn2.to_k": 0.5},
    )
    unet.add_adapter(config)
    lora = get_peft_model_state_dict(unet)
    with torch.no_grad():
        for i, (_, tensor) in enumerate(sorted(lora.items())):
            tensor.copy_(0.3 * normal(400 + i, *tensor.shape))
        latents, text, timesteps = normal(14, 2, 4, 8, 8), normal(15, 2, 6, 40), torch.tensor([20, 700])
        out = unet(latents, timesteps, text).sample
    tensors = {f"adapter.base_model.model.{name}": tensor.contiguous() for name, tensor in lora.items()}
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        adapter_config = (Path(folder) / "adapter_config.json").read_text()
    scalings = {name: module.scaling["default"] for name, module in unet.named_modules() if hasattr(module, "scaling")}
    tensors |= {"latents": latents, "text": text, "timesteps": timesteps, "out": out}
    tensors |= {f"scaling.{name}": torch.tensor(scaling, dtype=torch.float64) for name, scaling in scalings.items()}
    metadata = {"unet": config_json(unet), "adapter_config": adapter_config}
    save_file(tensors, HERE / "diffusion_lora_patterns.safetensors", metadata)


def make_pipeline(folder):
    """The whole pipeline, text to image, with guidance at eta 0."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    prompts = ["painting of a landscape", "drawing of a man"]
    unet = pipeline.unet.config
    latents = normal(17, 2, unet.in_channels, unet.sample_size, unet.sample_size)
    arguments = dict(prompt=prompts, latents=latents, num_inference_steps=6, guidance_scale=2.5, eta=0.0)
    embeddings, _ = pipeline.encode_prompt(prompts, "cpu", 1, False)
    final = pipeline(**arguments, output_type="latent").images
    images = torch.from_numpy(pipeline(**arguments, output_type="np").images)
    rounded = (images * 255).round().to(torch.uint8).contiguous()
    tensors = dict(latents=latents, embeddings=embeddings, final=final, images_u8=rounded)
    save_file(tensors, HERE / "diffusion_pipeline.safetensors", {"prompts": json.dumps(prompts)})


if __name__ == "__main__":
    assert diffusers.__version__ == "0.42.1", diffusers.__version__
    make_unets()
    make_vae()
    make_ddim()
    make_log_probs()
    make_lora()
    make_lora_patterns()
    make_pipeline(sys.argv[1] if len(sys.argv) > 1 else HERE.parent.parent / "models/weights/tiny-art/diffusion")
