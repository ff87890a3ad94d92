use serde_json::json;

use super::*;
use crate::scheduler::{Ddim, LastStep, SchedulerConfig};

const STEPS: usize = 7;
const SCHEDULERS: [&str; 5] = ["epsilon", "v_prediction", "sample", "clipped", "zero_snr"];

fn config(reference: &Reference, name: &str) -> SchedulerConfig {
    SchedulerConfig::read(&reference.config(name)).unwrap()
}

#[test]
fn timesteps_and_alphas_are_diffusers() {
    let reference = Reference::read("diffusion_ddim.safetensors");
    for name in SCHEDULERS {
        let config = config(&reference, name);
        for steps in [1, 7, 30, 50] {
            let ddim = Ddim::new(&config, steps).unwrap();
            let theirs = Vec::<i64>::try_from(reference.tensor(&format!("{name}.timesteps.{steps}"))).unwrap();
            assert_eq!(ddim.timesteps(), theirs, "{name}, {steps} steps");
        }
        let ddim = Ddim::new(&config, STEPS).unwrap();
        let theirs = reference.tensor(&format!("{name}.alphas_cumprod"));
        // libtorch's square root and cumulative product round differently from one processor to another.
        assert_close(name, &Tensor::from_slice(ddim.alphas_cumprod()), theirs, 5e-7);
    }
}

#[test]
fn trajectories_match_diffusers() {
    let reference = Reference::read("diffusion_ddim.safetensors");
    let unet = drawn_unet(&reference, "unet", 101, Kind::Float);
    let (noise, text, null) = (reference.tensor("noise"), reference.tensor("text"), reference.tensor("null"));
    let both = Tensor::cat(&[null.expand([2, -1, -1], false), text.shallow_clone()], 0);
    for name in SCHEDULERS {
        let ddim = Ddim::new(&config(&reference, name), STEPS).unwrap();
        for eta in [0, 1] {
            // diffusers' numbers are not finite for one of them, see the script.
            let Some(theirs) = reference.tensors.get(&format!("{name}.eta{eta}")) else { continue };
            let mut sample = reference.tensor("latents") * ddim.init_noise_sigma();
            let mut trajectory = vec![sample.shallow_clone()];
            for (i, &t) in ddim.timesteps().iter().enumerate() {
                let timesteps = Tensor::full([4], t, (Kind::Int64, device()));
                let predicted = unet.forward(&Tensor::cat(&[&sample, &sample], 0), &timesteps, &both);
                let (without, guided) = (predicted.narrow(0, 0, 2), predicted.narrow(0, 2, 2));
                let predicted = &without + (guided - &without) * 2.5;
                let noise = noise.get(i as i64);
                let step = ddim.step(&predicted, i, &sample, f64::from(eta), Some(&noise), LastStep::FinalAlpha);
                sample = step.prev_sample;
                trajectory.push(sample.shallow_clone());
            }
            assert_close(&format!("{name} at eta {eta}"), &Tensor::stack(&trajectory, 0), theirs, 1e-5);
        }
    }
}

#[test]
fn noise_is_added_as_diffusers_does() {
    let reference = Reference::read("diffusion_ddim.safetensors");
    let ddim = Ddim::new(&config(&reference, "epsilon"), STEPS).unwrap();
    let input = |part: &str| reference.tensor(&format!("add_noise.{part}"));
    let out = ddim.add_noise(input("clean"), input("noise"), input("timesteps"));
    assert_close("add_noise", &out, input("out"), 1e-6);
}

#[test]
fn log_probabilities_are_trls() {
    let reference = Reference::read("diffusion_log_probs.safetensors");
    for name in ["epsilon", "v_prediction", "clipped"] {
        let ddim = Ddim::new(&config(&reference, name), STEPS).unwrap();
        let input = |part: &str| reference.tensor(&format!("{name}.{part}"));
        let steps = Tensor::arange(STEPS as i64, (Kind::Int64, device()));
        for (output, theirs) in [("output", "log_probs"), ("off_policy_output", "off_policy_log_probs")] {
            let (sample, prev) = (input("sample"), input("prev_sample"));
            let ours = ddim.log_prob(input(output), &steps, sample, prev, 1.0, LastStep::Stochastic);
            let error = (ours - input(theirs)).abs().max().double_value(&[]);
            assert!(error <= 1e-5, "{name}, {theirs}: {error:.2e}");
        }
    }
}

#[test]
fn the_divergence_between_steps_is_that_of_their_normal_distributions() {
    let reference = Reference::read("diffusion_log_probs.safetensors");
    for name in ["epsilon", "v_prediction", "clipped"] {
        let ddim = Ddim::new(&config(&reference, name), STEPS).unwrap();
        let input = |part: &str| reference.tensor(&format!("{name}.{part}"));
        let steps = Tensor::arange(STEPS as i64, (Kind::Int64, device()));
        let (output, other) = (input("off_policy_output").copy().set_requires_grad(true), input("output"));
        let other = other.copy().set_requires_grad(true);
        let kl = ddim.kl_divergence(&output, &other, &steps, input("sample"), 1.0, LastStep::Stochastic);
        assert_eq!(kl.size(), [STEPS as i64]);
        let errors = (&kl.to_kind(Kind::Double) / input("kl") - 1.0).abs();
        let error = errors.max().double_value(&[]);
        assert!(error <= 1e-4, "{name}: {error:.2e}");
        // The second output is a reference, which does not move.
        kl.sum(Kind::Float).backward();
        assert!(output.grad().abs().max().double_value(&[]) > 0.0 && !other.grad().defined());
    }
}

#[test]
fn only_a_step_that_may_vary_has_a_probability() {
    let reference = Reference::read("diffusion_log_probs.safetensors");
    let ddim = Ddim::new(&config(&reference, "epsilon"), STEPS).unwrap();
    let (output, sample) = (reference.tensor("epsilon.output").get(0), reference.tensor("epsilon.sample").get(0));
    let (output, sample) = (output.unsqueeze(0), sample.unsqueeze(0));
    let noise = sample.ones_like();
    let certain = ddim.step(&output, 0, &sample, 0.0, Some(&noise), LastStep::FinalAlpha);
    assert!(certain.log_prob.is_none() && certain.std == 0.0);
    assert_eq!(certain.prev_sample, certain.mean);
    let step = ddim.step(&output, 0, &sample, 0.5, Some(&noise), LastStep::FinalAlpha);
    assert_close("one deviation", &(&step.prev_sample - &step.mean), &(noise * step.std), 1e-5);
    // Noise of ones: ln N(μ + σ; μ, σ²) of every element, and so their mean.
    let wanted = -0.5 - step.std.ln() - 0.5 * (2.0 * std::f64::consts::PI).ln();
    let found = step.log_prob.unwrap().double_value(&[0]);
    assert!((found - wanted).abs() < 1e-5, "{found}, not {wanted}");
}

#[test]
fn a_pndm_folder_becomes_ddim() {
    let reference = Reference::read("diffusion_ddim.safetensors");
    let config = config(&reference, "pndm");
    assert!(!config.clip_sample);
    let theirs = Vec::<i64>::try_from(reference.tensor("pndm.timesteps.30")).unwrap();
    assert_eq!(Ddim::new(&config, 30).unwrap().timesteps(), theirs);
}

#[test]
fn configuration_survives_writing_and_reading() {
    let reference = Reference::read("diffusion_ddim.safetensors");
    for name in SCHEDULERS {
        let config = config(&reference, name);
        let folder = tempfile::tempdir().unwrap();
        config.save(folder.path()).unwrap();
        assert_eq!(SchedulerConfig::read(&folder.path().join("scheduler_config.json")).unwrap(), config);
    }
}

#[test]
fn gradients_reach_the_output_and_not_the_sample_stepped_to() {
    let reference = Reference::read("diffusion_log_probs.safetensors");
    let ddim = Ddim::new(&config(&reference, "epsilon"), STEPS).unwrap();
    let input = |part: &str| reference.tensor(&format!("epsilon.{part}")).copy().set_requires_grad(true);
    let (output, sample, prev) = (input("output"), input("sample"), input("prev_sample"));
    let steps = Tensor::arange(STEPS as i64, (Kind::Int64, device()));
    ddim.log_prob(&output, &steps, &sample, &prev, 1.0, LastStep::Stochastic).sum(Kind::Float).backward();
    assert!(output.grad().abs().max().double_value(&[]) > 0.0);
    assert!(!prev.grad().defined());
}

#[test]
fn numbers_that_no_schedule_has_are_refused_by_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scheduler_config.json");
    let cases = [
        ("num_train_timesteps", json!(i64::MAX)),
        ("steps_offset", json!(i64::MAX)),
        ("clip_sample_range", json!(0)),
        ("beta_start", json!(-0.1)),
        ("beta_end", json!(2.0)),
    ];
    for (key, value) in cases {
        std::fs::write(&path, json!({ key: value }).to_string()).unwrap();
        let error = SchedulerConfig::read(&path).unwrap_err().to_string();
        assert!(error.contains("scheduler_config.json") && error.contains(key), "{key}: {error}");
    }
    // No noise at the first timestep, and no image left before the last.
    for betas in [json!([0.0, 0.1]), json!([0.5, 1.0, 0.5]), json!([0.5, 1.0]), json!([0.5, 2.0])] {
        let n = betas.as_array().unwrap().len();
        std::fs::write(&path, json!({ "trained_betas": betas, "num_train_timesteps": n }).to_string()).unwrap();
        let error = SchedulerConfig::read(&path).unwrap_err().to_string();
        assert!(error.contains("key `trained_betas` leads to"), "{error}");
    }
    // A network that predicts no noise may see nothing but noise last.
    let config = json!({ "trained_betas": [0.5, 1.0], "num_train_timesteps": 2, "prediction_type": "v_prediction" });
    std::fs::write(&path, config.to_string()).unwrap();
    assert_eq!(Ddim::new(&SchedulerConfig::read(&path).unwrap(), 2).unwrap().alphas_cumprod(), [0.5, 0.0]);
}

/// A clip that clips nothing changes nothing, whatever the network predicts.
#[test]
fn a_wide_clip_is_none() {
    let sample = Tensor::arange(8, (Kind::Float, tch::Device::Cpu)).view([1, 2, 2, 2]) * 0.3 - 1.0;
    let output = sample.sin() + 0.25;
    for prediction in ["epsilon", "sample", "v_prediction"] {
        let mean = |clip: bool| {
            let mut config = json!({ "prediction_type": prediction, "clip_sample": clip, "clip_sample_range": 1e3 });
            config["beta_schedule"] = "scaled_linear".into();
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("scheduler_config.json");
            std::fs::write(&path, config.to_string()).unwrap();
            let ddim = Ddim::new(&SchedulerConfig::read(&path).unwrap(), 4).unwrap();
            ddim.step(&output, 1, &sample, 0.0, None, LastStep::FinalAlpha).mean
        };
        assert_close(prediction, &mean(true), &mean(false), 1e-5);
    }
}

#[test]
fn values_that_stable_diffusion_does_not_accept_are_replaced_and_named() {
    let mut config = SchedulerConfig { steps_offset: 0, clip_sample: true, ..SchedulerConfig::diffusers_default() };
    let notes = config.for_stable_diffusion();
    assert_eq!(
        notes,
        [
            "`steps_offset` is 0, but Stable Diffusion needs 1, which is used",
            "`clip_sample` is true, but latents must not be clipped; false is used"
        ]
    );
    assert_eq!((config.steps_offset, config.clip_sample), (1, false));
    assert_eq!(config.for_stable_diffusion(), [""; 0]);
}

#[test]
fn values_that_contradict_each_other_are_refused_in_files_and_in_code() {
    let message = |config: &SchedulerConfig| Ddim::new(config, 2).unwrap_err().to_string();
    let betas = SchedulerConfig { trained_betas: Some(vec![0.5; 3]), ..SchedulerConfig::diffusers_default() };
    let expected = "scheduler configuration: `trained_betas` has 3 entries for 1000 timesteps";
    assert!(message(&betas).contains(expected), "{}", message(&betas));
    let terminal = SchedulerConfig { rescale_betas_zero_snr: true, ..SchedulerConfig::diffusers_default() };
    assert!(message(&terminal).contains("`rescale_betas_zero_snr` is true, so epsilon cannot be predicted"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scheduler_config.json");
    std::fs::write(&path, json!({ "trained_betas": [0.5, 0.5, 0.5] }).to_string()).unwrap();
    let error = SchedulerConfig::read(&path).unwrap_err().to_string();
    assert!(error.contains("has 3 entries for 1000 timesteps"), "{error}");
}
