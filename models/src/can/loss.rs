//! The losses of a CAN, all to be minimized. See the paper's section on CAN; where its text leaves a sign open, it is
//! the one with which minimizing the loss trains each network for its purpose.

use tch::{Kind, Reduction, Tensor};

use crate::error::Result;

/// The Wasserstein form's loss of D without the penalty: mean D(fake) − mean D(real), from logits \[n\].
pub fn critic(real: &Tensor, fake: &Tensor) -> Tensor {
    fake.mean(Kind::Float) - real.mean(Kind::Float)
}

/// The Wasserstein form's loss of G: −mean D(fake).
pub fn critic_generator(fake: &Tensor) -> Tensor {
    -fake.mean(Kind::Float)
}

/// The log form's loss of D: −E log σ(real) − E log(1 − σ(fake)), from logits \[n\].
pub fn log_discriminator(real: &Tensor, fake: &Tensor) -> Tensor {
    -real.log_sigmoid().mean(Kind::Float) - (-fake).log_sigmoid().mean(Kind::Float)
}

/// The log form's loss of G: E log(1 − σ(fake)), or −E log σ(fake) if `nonsaturating`.
pub fn log_generator(fake: &Tensor, nonsaturating: bool) -> Tensor {
    if nonsaturating { -fake.log_sigmoid().mean(Kind::Float) } else { (-fake).log_sigmoid().mean(Kind::Float) }
}

/// L_SL: the cross-entropy of the style logits [n, styles] of real images to their styles, i64 \[n\], of which
/// `smoothing`, 0 in the paper, is spread evenly over all styles (Szegedy et al., arXiv 1512.00567, section 7).
pub fn style(logits: &Tensor, styles: &Tensor, smoothing: f64) -> Tensor {
    logits.cross_entropy_loss(styles, None::<&Tensor>, Reduction::Mean, -100, smoothing)
}

/// L_SA: CE(C(x), U) from style logits [n, styles], averaged over the images. The minimum is ln of the number of
/// styles.
pub fn ambiguity(logits: &Tensor) -> Tensor {
    -logits.log_softmax(1, Kind::Float).mean(Kind::Float)
}

/// The gradient penalty: (‖∇D‖₂ − 1)², averaged over points between real and fake images [n, 3, s, s],
/// ε real + (1 − ε) fake, with one ε in `mix`, \[n\] in [0, 1], for each. `critic` returns \[n\]. It is differentiable
/// with respect to D's parameters.
pub fn gradient_penalty(
    real: &Tensor,
    fake: &Tensor,
    mix: &Tensor,
    critic: impl FnOnce(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let mix = mix.view([-1, 1, 1, 1]);
    let rest: Tensor = 1.0 - &mix;
    let between: Tensor = real * &mix + fake * rest;
    let between = between.detach().set_requires_grad(true);
    let sum = critic(&between)?.sum(Kind::Float);
    let gradient = Tensor::f_run_backward(&[sum], &[&between], true, true)?.remove(0);
    let norms = gradient.flatten(1, -1).square().sum_dim_intlist([1i64].as_slice(), false, Kind::Float).sqrt();
    Ok((norms - 1.0).square().mean(Kind::Float))
}
