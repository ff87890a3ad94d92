//! Gradient checkpointing (Chen et al., Training Deep Nets with Sublinear Memory Cost, arXiv 1604.06174): the forward
//! pass stores only what is passed from stage to stage, and the backward pass computes each stage again.
//!
//! It costs one more forward pass and needs the memory of one stage's graph instead of all of them.

use tch::{Tensor, no_grad};

use super::{Stage, State, Text, UNet};
use crate::error::Result;

/// A forward pass whose graph is built stage by stage in the backward pass.
#[derive(Debug)]
pub struct Recomputed {
    latents: Tensor,
    timesteps: Tensor,
    text: Text,
    /// The input of each stage, in order.
    inputs: Vec<(Stage, State)>,
}

impl UNet {
    /// Computes [`UNet::forward_text`] without a graph, and returns with the output what [`Recomputed::backward`] needs.
    pub fn forward_recomputed(&self, latents: &Tensor, timesteps: &Tensor, text: &Text) -> (Tensor, Recomputed) {
        no_grad(|| {
            let mut state = self.head(latents, timesteps);
            let mut inputs = Vec::new();
            for stage in self.stages() {
                inputs.push((stage, state.shallow_clone()));
                state = self.stage(stage, state, text);
            }
            let (latents, timesteps) = (latents.shallow_clone(), timesteps.shallow_clone());
            let text = text.shallow_clone();
            (
                state.maps.pop().expect("the last stage leaves the output"),
                Recomputed { latents, timesteps, text, inputs },
            )
        })
    }
}

impl Recomputed {
    /// Adds the gradient of Σ output · `gradient` to the parameters of `unet`, which must be as in the forward pass.
    pub fn backward(self, unet: &UNet, gradient: &Tensor) -> Result<()> {
        // Gradients with respect to the input of the stage after this one; a feature map that no stage used has none.
        let mut gradients = vec![None, Some(gradient.shallow_clone())];
        for (stage, input) in self.inputs.into_iter().rev() {
            let leaf = |tensor: &Tensor| tensor.detach().set_requires_grad(true);
            let leaves = State { time: leaf(&input.time), maps: input.maps.iter().map(leaf).collect() };
            let output = unet.stage(stage, leaves.shallow_clone(), &self.text);
            backward_from(output.tensors(), &gradients)?;
            gradients = leaves.tensors().map(|leaf| Some(leaf.grad()).filter(Tensor::defined)).collect();
        }
        backward_from(unet.head(&self.latents, &self.timesteps).tensors(), &gradients)
    }
}

/// The backward pass of Σ output · gradient.
fn backward_from<'a>(outputs: impl Iterator<Item = &'a Tensor>, gradients: &[Option<Tensor>]) -> Result<()> {
    let terms = outputs.zip(gradients).filter_map(|(output, gradient)| {
        let gradient = gradient.as_ref().filter(|_| output.requires_grad())?;
        Some((output * gradient).sum(output.kind()))
    });
    match terms.reduce(|sum, term| sum + term) {
        Some(sum) => Ok(sum.f_backward()?),
        None => Ok(()),
    }
}
