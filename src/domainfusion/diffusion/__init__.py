"""The latent diffusion model: loading, prompting, image-to-image, and pretraining a small one."""
