use torch_ext::{AdamW, AdamWConfig};

use super::*;
use crate::can::{Discriminator, DiscriminatorConfig, Generator as CanGenerator, GeneratorConfig, ImageSource, loss};

const TOLERANCE: f64 = 1e-5;

/// Returns both networks, and their tensors with the prefixes `g.` and `d.`.
pub(super) fn networks(reference: &Reference) -> (CanGenerator, Discriminator, NamedTensors) {
    let mut all = NamedTensors::new();
    let part = |prefix: &str| {
        let mut tensors = reference.part(prefix);
        tensors.retain(|name, _| !name.starts_with("after.") && !name.starts_with("gradient."));
        Params::from_tensors(tensors, prefix, device(), Kind::Float)
    };
    let params = part("g.");
    let config = GeneratorConfig { size: 64, latent: 6, channels: 32, slope: 0.2 };
    let generator = CanGenerator::new(&params, &config).unwrap();
    all.extend(params.finish().unwrap().into_iter().map(|(name, tensor)| (format!("g.{name}"), tensor)));
    let params = part("d.");
    let config =
        DiscriminatorConfig { size: 64, channels: 4, max_channels: 8, head: [10, 7], dropout: 0.0, n_styles: 5 };
    let discriminator = Discriminator::new(&params, &config).unwrap();
    all.extend(params.finish().unwrap().into_iter().map(|(name, tensor)| (format!("d.{name}"), tensor)));
    (generator, discriminator, all)
}

fn trainable(parameters: Vec<(String, Tensor)>) -> Vec<(String, Tensor)> {
    parameters.into_iter().map(|(name, tensor)| (name, tensor.set_requires_grad(true))).collect()
}

fn gradient(parameters: &[(String, Tensor)], name: &str) -> Tensor {
    parameters.iter().find(|(own, _)| own == name).unwrap_or_else(|| panic!("no {name}")).1.grad()
}

#[test]
fn a_step_of_both_sides_matches_pytorch() {
    let reference = Reference::read("can.safetensors");
    let (generator, discriminator, tensors) = networks(&reference);
    let check = |what: &str, found: &Tensor, wanted: &str| {
        let error = relative_error(found, reference.tensor(wanted));
        assert!(error <= TOLERANCE, "{what}: {error:.2e}");
    };
    let (noise, labels) = (reference.tensor("noise"), reference.tensor("labels"));
    let real = reference.tensor("real").to_kind(Kind::Float);
    tch::no_grad(|| {
        check("images", &generator.forward(noise, false).narrow(0, 0, 1), "eval.images");
        let output = discriminator.forward(&real);
        check("logits of real images", &output.real, "eval.real");
        check("styles", &output.styles, "eval.styles");
    });

    let parameters = trainable(discriminator.parameters());
    let adam = AdamWConfig { learning_rate: 1e-3, beta1: 0.9, beta2: 0.99, weight_decay: 0.0, epsilon: 1e-8 };
    let mut optimizer = AdamW::new(parameters, adam).unwrap();
    let generator_parameters = trainable(generator.parameters());
    let fake = generator.forward(noise, true).detach();
    check("images in training", &fake.narrow(0, 0, 1), "train.images");
    let mut randomness = Generator::cpu(0).unwrap();
    let output = discriminator.forward_train(&real, ImageSource::Real, &mut randomness).unwrap();
    let fake_logits = discriminator.real_train(&fake, ImageSource::Fake);
    let penalty = loss::gradient_penalty(&real, &fake, reference.tensor("mix"), |x| {
        discriminator.real_train(x, ImageSource::Fake)
    })
    .unwrap();
    let critic = loss::critic(&output.real, &fake_logits);
    let style = loss::style(&output.styles, labels, 0.0);
    check("critic", &critic, "loss.critic");
    check("penalty", &penalty, "loss.penalty");
    check("style", &style, "loss.style");
    check("smoothed", &loss::style(&output.styles, labels, 0.2), "loss.style_smoothed");
    check("log form", &loss::log_discriminator(&output.real, &fake_logits), "loss.log_discriminator");
    (critic + style + penalty * 10.0).backward();
    for name in ["blocks.0.conv.weight", "style_head.0.weight"] {
        check(name, &gradient(optimizer.parameters(), name), &format!("d.gradient.{name}"));
    }
    optimizer.step().unwrap();
    // The tensors include BatchNorm's running statistics.
    let check_after = |network: &str, n: usize| {
        let prefix = format!("{network}.after.");
        let names: Vec<&str> = reference.tensors.keys().filter_map(|name| name.strip_prefix(&prefix)).collect();
        assert_eq!(names.len(), n, "{names:?}");
        for name in names {
            check(name, &tensors[&format!("{network}.{name}")], &format!("{prefix}{name}"));
        }
    };
    check_after("d", 14);

    let output =
        discriminator.forward_train(&generator.forward(noise, true), ImageSource::Fake, &mut randomness).unwrap();
    let (critic, ambiguity) = (loss::critic_generator(&output.real), loss::ambiguity(&output.styles));
    check("critic of the generator", &critic, "loss.critic_generator");
    check("ambiguity", &ambiguity, "loss.ambiguity");
    check("log form", &loss::log_generator(&output.real, false), "loss.log_generator");
    check("nonsaturating", &loss::log_generator(&output.real, true), "loss.nonsaturating");
    (critic + ambiguity).backward();
    check_after("g", 8);
    for name in ["blocks.0.conv.weight", "out.conv.weight"] {
        check(name, &gradient(&generator_parameters, name), &format!("g.gradient.{name}"));
    }
}

#[test]
fn dropout_follows_its_seed_and_is_for_training_alone() {
    let reference = Reference::read("can.safetensors");
    let (_, discriminator, _) = networks(&reference);
    let config = DiscriminatorConfig { dropout: 0.5, ..*discriminator.config() };
    let params = Params::random(1, device()).unwrap();
    let discriminator = Discriminator::new(&params, &config).unwrap();
    let real = reference.tensor("real").to_kind(Kind::Float);
    let styles = |seed| {
        let mut randomness = Generator::cpu(seed).unwrap();
        tch::no_grad(|| discriminator.forward_train(&real, ImageSource::Real, &mut randomness).unwrap().styles)
    };
    assert!(styles(1).equal(&styles(1)) && !styles(1).equal(&styles(2)));
    let evaluated = || tch::no_grad(|| discriminator.forward(&real).styles);
    assert!(evaluated().equal(&evaluated()));
}

#[test]
fn other_sides_are_refused() {
    for size in [16, 48, 0, -64] {
        let config = GeneratorConfig { size, latent: 6, channels: 32, slope: 0.2 };
        let error = CanGenerator::new(&Params::shapes(), &config).unwrap_err().to_string();
        assert!(error.contains("power of two"), "{error}");
    }
}

/// No number of a style is that of a row to leave out.
#[test]
fn every_style_counts_in_the_loss() {
    let logits = Tensor::zeros([1, 101], (Kind::Float, tch::Device::Cpu));
    let loss = loss::style(&logits, &Tensor::from_slice(&[100i64]), 0.0).double_value(&[]);
    assert!((loss - 101f64.ln()).abs() < 1e-5, "{loss}");
}
