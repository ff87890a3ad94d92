use std::thread;
use std::time::Duration;

use torch_ext::distributed::{ProcessGroup, Store};
use torch_ext::{AdamW, AdamWConfig};

use super::*;
use crate::can::{
    Discriminator, DiscriminatorConfig, Generator as CanGenerator, GeneratorConfig, ImageSource, Share, loss,
};

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
        check("images", &generator.forward(noise).unwrap().narrow(0, 0, 1), "eval.images");
        let output = discriminator.forward(&real).unwrap();
        check("logits of real images", &output.real, "eval.real");
        check("styles", &output.styles, "eval.styles");
    });

    let parameters = trainable(discriminator.parameters());
    let adam = AdamWConfig { learning_rate: 1e-3, beta1: 0.9, beta2: 0.99, weight_decay: 0.0, epsilon: 1e-8 };
    let mut optimizer = AdamW::new(parameters, adam).unwrap();
    let generator_parameters = trainable(generator.parameters());
    let share = Share::whole(noise.size()[0]);
    let fake = generator.forward_train(noise, &share).unwrap().detach();
    check("images in training", &fake.narrow(0, 0, 1), "train.images");
    let mut randomness = Generator::cpu(0).unwrap();
    let output = discriminator.forward_train(&real, ImageSource::Real, &share, &mut randomness).unwrap();
    let fake_logits = discriminator.real_train(&fake, ImageSource::Fake, &share).unwrap();
    let penalty = loss::gradient_penalty(&real, &fake, reference.tensor("mix"), |x| {
        discriminator.real_train(x, ImageSource::Fake, &share)
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

    let fake = generator.forward_train(noise, &share).unwrap();
    let output = discriminator.forward_train(&fake, ImageSource::Fake, &share, &mut randomness).unwrap();
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
        let share = Share::whole(real.size()[0]);
        tch::no_grad(|| discriminator.forward_train(&real, ImageSource::Real, &share, &mut randomness).unwrap().styles)
    };
    assert!(styles(1).equal(&styles(1)) && !styles(1).equal(&styles(2)));
    let evaluated = || tch::no_grad(|| discriminator.forward(&real).unwrap().styles);
    assert!(evaluated().equal(&evaluated()));
}

/// One step of both networks, by processes that each compute some rows: the losses and gradients, summed over the processes,
/// and the running statistics are those of one process.
#[test]
fn processes_that_share_a_batch_compute_what_one_does() {
    let n = Reference::read("can.safetensors").tensor("noise").size()[0];
    // Losses and gradients, of both networks, and BatchNorm's statistics, as one row of numbers.
    let step = |share: &Share| {
        let reference = Reference::read("can.safetensors");
        let (generator, discriminator, tensors) = networks(&reference);
        let config = DiscriminatorConfig { dropout: 0.3, ..*discriminator.config() };
        let params = Params::from_tensors(
            tensors
                .iter()
                .filter_map(|(name, tensor)| Some((name.strip_prefix("d.")?.to_owned(), tensor.copy())))
                .collect(),
            "d.",
            device(),
            Kind::Float,
        );
        let discriminator = Discriminator::new(&params, &config).unwrap();
        let d = trainable(discriminator.parameters());
        let g = trainable(generator.parameters());
        let mut randomness = Generator::cpu(3).unwrap();
        let rows = |name: &str| share.rows(&reference.tensor(name).shallow_clone());
        let (real, labels, mix) = (rows("real").to_kind(Kind::Float), rows("labels"), rows("mix"));
        let noise = share.normal(&mut randomness, &[6]).unwrap().to_device(device());
        let fake = generator.forward_train(&noise, share).unwrap();
        let output = discriminator.forward_train(&real, ImageSource::Real, share, &mut randomness).unwrap();
        let on_fake = discriminator.real_train(&fake.detach(), ImageSource::Fake, share).unwrap();
        let penalty = loss::gradient_penalty(&real, &fake.detach(), &mix, |x| {
            discriminator.real_train(x, ImageSource::Fake, share)
        })
        .unwrap();
        let of_d = loss::critic(&output.real, &on_fake) + loss::style(&output.styles, &labels, 0.1) + penalty * 10.0;
        let of_d = share.weighted(&of_d);
        of_d.f_backward().unwrap();
        let mut numbers = vec![of_d.detach().view([1])];
        numbers.extend(d.iter().map(|(_, tensor)| tensor.grad().flatten(0, -1)));
        let output = discriminator.forward_train(&fake, ImageSource::Fake, share, &mut randomness).unwrap();
        let of_g = share.weighted(&(loss::critic_generator(&output.real) + loss::ambiguity(&output.styles)));
        of_g.f_backward().unwrap();
        numbers.push(of_g.detach().view([1]));
        numbers.extend(g.iter().map(|(_, tensor)| tensor.grad().flatten(0, -1)));
        let running: Vec<Tensor> = params
            .finish()
            .unwrap()
            .into_iter()
            .chain(tensors)
            .filter(|(name, _)| name.contains("running"))
            .map(|(_, tensor)| tensor.flatten(0, -1))
            .collect();
        let ordered = share.all_rows(&on_fake).unwrap();
        (Tensor::cat(&numbers, 0), Tensor::cat(&running, 0), ordered)
    };
    let whole = step(&Share::whole(n));
    let timeout = Duration::from_secs(60);
    let server = Store::serve(0, timeout).unwrap();
    let port = server.port();
    // Uneven shares, the least of one row.
    let bounds = [0, 1, n / 2, n];
    let parts: Vec<_> = thread::scope(|scope| {
        let process = |rank: usize| {
            let (step, bounds) = (&step, &bounds);
            scope.spawn(move || {
                let store = Store::connect("127.0.0.1", port, false, "", timeout).unwrap();
                let group = ProcessGroup::connect(&store, "127.0.0.1", rank, 3, timeout).unwrap();
                step(&Share::of_processes(bounds[rank]..bounds[rank + 1], n, group))
            })
        };
        let processes = [0, 1, 2].map(process);
        processes.into_iter().map(|process| process.join().unwrap()).collect()
    });
    let sum = parts.iter().fold(whole.0.zeros_like(), |sum, part| sum + &part.0);
    let error = relative_error(&sum, &whole.0);
    assert!(error < TOLERANCE, "losses and gradients: {error:.2e}");
    for part in &parts {
        let errors = [relative_error(&part.1, &whole.1), relative_error(&part.2, &whole.2)];
        assert!(errors.iter().all(|error| *error < TOLERANCE), "running statistics and logits: {errors:?}");
    }
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
