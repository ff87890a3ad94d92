//! Parity with diffusers, peft and TRL on small random networks; `tests/reference/make_diffusion.py` makes the
//! reference tensors. The relative error is ‖a − b‖₂ / ‖b‖₂.

mod diffusion;
