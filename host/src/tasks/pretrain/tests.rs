//! Tests of all three stages at small sizes: uninterrupted, interrupted, on one thread and on two.

use std::path::Path;
use std::time::Duration;

use super::*;
use crate::config::Layer;
use crate::interrupt::Interrupted;

const STEPS: u64 = 12;

fn toy_config() -> PretrainFile {
    let mut set = vec![
        "data.held_out_per_pair=1".to_owned(),
        "data.size=32".to_owned(),
        "clip.batch_size=8".to_owned(),
        "clip.text.hidden_size=16".to_owned(),
        "clip.vision.hidden_size=16".to_owned(),
        "vae.batch_size=2".to_owned(),
        "vae.block_out_channels=[8, 8]".to_owned(),
        "unet.batch_size=4".to_owned(),
        "unet.block_out_channels=[16, 16, 32]".to_owned(),
        "unet.samples.steps=2".to_owned(),
        "unet.samples.styled=4".to_owned(),
        "unet.samples.plain=4".to_owned(),
        "unet.samples.styled_on_the_way=2".to_owned(),
        "unet.samples.plain_on_the_way=2".to_owned(),
    ];
    for stage in Stage::ALL.map(Stage::name) {
        set.push(format!("{stage}.per_pair=1"));
        set.push(format!("{stage}.schedule.steps={STEPS}"));
        set.push(format!("{stage}.schedule.steps_per_epoch=4"));
        set.push(format!("{stage}.schedule.evaluate_every=2"));
    }
    let layers: Result<Vec<Layer>> = set.iter().map(|pair| Layer::set(&format!("pretrain.{pair}"))).collect();
    PretrainFile::resolve(&layers.unwrap()).unwrap()
}

fn context(threads: usize) -> Context {
    Context { threads, ..Context::quiet() }
}

fn session<'a>(config: &'a PretrainFile, out: &'a Path, resume: bool, context: &'a Context) -> Session<'a> {
    Session { config, out, resume, context }
}

/// The bytes of all products except the cards, which contain durations.
fn products(session: &Session) -> Vec<Vec<u8>> {
    Stage::ALL.iter().map(|&stage| std::fs::read(session.product(stage)).unwrap()).collect()
}

/// Asks for a stop as soon as the stage has a checkpoint.
fn stop_at_checkpoint(session: &Session, stage: Stage) {
    let (path, interrupt) = (session.run_dir(stage).join("checkpoints/epoch-0001"), session.context.interrupt.clone());
    std::thread::spawn(move || {
        while !path.exists() {
            std::thread::sleep(Duration::from_micros(200));
        }
        interrupt.request();
    });
}

#[test]
fn interrupted_training_on_more_threads_has_the_same_bytes() {
    let config = toy_config();
    let (whole_dir, pieces_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (one, two) = (context(1), context(2));
    let whole = session(&config, whole_dir.path(), false, &one);
    assert_eq!(run(&Stage::ALL, &whole).unwrap().len(), 3);
    for stage in Stage::ALL {
        let interrupted = context(2);
        let piece = session(&config, pieces_dir.path(), false, &interrupted);
        stop_at_checkpoint(&piece, stage);
        let error = run(&[stage], &piece).unwrap_err();
        assert!(error.is::<Interrupted>() && error.to_string().contains("--resume`"), "{error:#}");
        assert!(!piece.product(stage).exists());
        run(&[stage], &session(&config, pieces_dir.path(), true, &two)).unwrap();
        let report = std::fs::read_to_string(piece.run_dir(stage).join("report.html")).unwrap();
        assert!(report.contains("3 epochs"), "{report}");
    }
    let pieces = session(&config, pieces_dir.path(), true, &one);
    assert!(products(&whole) == products(&pieces), "the weights differ");
    for card in ["clip/README.md", "diffusion/README.md"] {
        let text = std::fs::read_to_string(pieces_dir.path().join(card)).unwrap();
        assert!(text.contains("license: apache-2.0") && !text.contains("NaN"), "{text}");
    }

    // A finished training is skipped, and never restarted over its results.
    assert_eq!(run(&Stage::ALL, &pieces).unwrap().len(), 3);
    let error = run(&Stage::ALL, &session(&config, pieces_dir.path(), false, &one)).unwrap_err();
    assert!(format!("{error:#}").contains("--resume"), "{error:#}");
}

#[test]
fn a_checkpoint_of_other_values_is_refused_by_name() {
    let mut config = toy_config();
    let dir = tempfile::tempdir().unwrap();
    let interrupted = context(1);
    let first = session(&config, dir.path(), false, &interrupted);
    stop_at_checkpoint(&first, Stage::Vae);
    run(&[Stage::Vae], &first).unwrap_err();
    config.pretrain.clip.batch_size += 1;
    config.pretrain.vae.kl_weight *= 2.0;
    let error = run(&[Stage::Vae], &session(&config, dir.path(), true, &context(1))).unwrap_err();
    assert!(format!("{error:#}").contains("pretrain.vae.kl_weight"), "{error:#}");
}

#[test]
fn the_unet_names_the_stage_it_needs_first() {
    let (config, context) = (toy_config(), context(1));
    let dir = tempfile::tempdir().unwrap();
    let error = run(&[Stage::UNet], &session(&config, dir.path(), false, &context)).unwrap_err();
    assert!(format!("{error:#}").contains("host pretrain clip"), "{error:#}");
}
