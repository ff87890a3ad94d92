//! All three stages at toy sizes: whole, in pieces, on one thread and on two.

use std::path::Path;
use std::time::Duration;

use super::config::PretrainConfig;
use super::*;
use crate::interrupt::Interrupted;

const STEPS: u64 = 12;

fn toy_config() -> PretrainConfig {
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
        set.push(format!("{stage}.schedule.checkpoint_every=4"));
        set.push(format!("{stage}.schedule.evaluate_every=6"));
    }
    let set: Vec<String> = set.into_iter().map(|pair| format!("pretrain.{pair}")).collect();
    PretrainConfig::resolve(None, &set).unwrap()
}

fn session<'a>(
    config: &'a PretrainConfig,
    out: &'a Path,
    resume: bool,
    threads: usize,
    interrupt: &'a Interrupt,
    progress: &'a Progress,
) -> Session<'a> {
    Session { config, out, resume, threads, interrupt, progress }
}

/// The bytes of everything that a training ships, but for the cards, which tell minutes.
fn products(session: &Session) -> Vec<Vec<u8>> {
    Stage::ALL.iter().map(|&stage| std::fs::read(session.product(stage)).unwrap()).collect()
}

/// Asks for a stop as soon as the stage has a checkpoint.
fn stop_at_checkpoint(session: &Session, stage: Stage) {
    let (path, interrupt) = (session.checkpoint(stage), session.interrupt.clone());
    std::thread::spawn(move || {
        while !path.exists() {
            std::thread::sleep(Duration::from_micros(200));
        }
        interrupt.request();
    });
}

#[test]
fn training_in_pieces_and_on_more_threads_gives_the_same_bytes() {
    let (config, progress) = (toy_config(), Progress::new(true));
    let (whole_dir, pieces_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let undisturbed = Interrupt::default();
    let whole = session(&config, whole_dir.path(), false, 1, &undisturbed, &progress);
    let results = run(&Stage::ALL, &whole).unwrap();
    assert_eq!(results.len(), 3);
    for stage in Stage::ALL {
        let interrupt = Interrupt::default();
        let piece = session(&config, pieces_dir.path(), false, 2, &interrupt, &progress);
        stop_at_checkpoint(&piece, stage);
        let error = run(&[stage], &piece).unwrap_err();
        assert!(error.is::<Interrupted>(), "{error:#}");
        assert!(piece.checkpoint(stage).exists());
        let rest = session(&config, pieces_dir.path(), true, 2, &undisturbed, &progress);
        run(&[stage], &rest).unwrap();
        assert!(!piece.checkpoint(stage).exists());
    }
    let pieces = session(&config, pieces_dir.path(), true, 1, &undisturbed, &progress);
    assert!(products(&whole) == products(&pieces), "the weights differ");
    for card in ["clip/README.md", "diffusion/README.md"] {
        let text = std::fs::read_to_string(pieces_dir.path().join(card)).unwrap();
        assert!(text.contains("license: apache-2.0") && !text.contains("not measured"), "{text}");
    }

    // A finished training is left alone, and not begun again over its results.
    assert_eq!(run(&Stage::ALL, &pieces).unwrap().len(), 3);
    let again = session(&config, pieces_dir.path(), false, 1, &undisturbed, &progress);
    let error = run(&Stage::ALL, &again).unwrap_err();
    assert!(format!("{error:#}").contains("--resume"), "{error:#}");
}

#[test]
fn a_checkpoint_of_other_values_is_refused_by_name() {
    let (mut config, progress) = (toy_config(), Progress::new(true));
    let dir = tempfile::tempdir().unwrap();
    let interrupt = Interrupt::default();
    let first = session(&config, dir.path(), false, 1, &interrupt, &progress);
    stop_at_checkpoint(&first, Stage::Vae);
    run(&[Stage::Vae], &first).unwrap_err();
    config.vae.kl_weight *= 2.0;
    let undisturbed = Interrupt::default();
    let error = run(&[Stage::Vae], &session(&config, dir.path(), true, 1, &undisturbed, &progress)).unwrap_err();
    assert!(format!("{error:#}").contains("pretrain.vae.kl_weight"), "{error:#}");
}

#[test]
fn the_unet_says_what_it_needs_first() {
    let (config, progress, interrupt) = (toy_config(), Progress::new(true), Interrupt::default());
    let dir = tempfile::tempdir().unwrap();
    let error = run(&[Stage::UNet], &session(&config, dir.path(), false, 1, &interrupt, &progress)).unwrap_err();
    assert!(format!("{error:#}").contains("host pretrain clip"), "{error:#}");
}
