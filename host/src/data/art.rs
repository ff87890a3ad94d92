//! Procedural paintings on disk: a folder per style with captions.jsonl, and a contact sheet of all styles and
//! subjects.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fs_err as fs;
use image::{Rgb, RgbImage, imageops};
use procedural_art::{CaptionKind, STYLES, SUBJECTS, caption, paint};
use rayon::prelude::*;
use serde::Serialize;

use crate::interrupt::{Interrupt, Interrupted};

/// The result of [`write_folder`].
#[derive(Clone, Copy, Debug)]
pub struct Written {
    /// Number of paintings.
    pub paintings: usize,
    /// Duration of writing.
    pub time: Duration,
}

/// A line of captions.jsonl.
#[derive(Serialize)]
struct Line<'a> {
    file: String,
    style: &'a str,
    subject: &'a str,
    caption: String,
}

/// A folder that is removed when dropped, unless it has been renamed to its final path.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        // A folder that cannot be removed is left behind.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Writes `per_class` paintings of each style to `out/STYLE/NNNN.png`, N cycling through the subjects, and
/// `out/captions.jsonl`; all under a temporary name beside `out` first, so that `out` is complete or does not exist.
///
/// `progress(done, total)` is called from many threads.
///
/// # Errors
/// If `out` is not empty or cannot be written, or `interrupt` is set: then nothing is left behind.
pub fn write_folder(
    out: &Path,
    per_class: usize,
    size: u32,
    seed: u64,
    progress: impl Fn(usize, usize) + Sync,
    interrupt: &Interrupt,
) -> Result<Written> {
    if out.exists() && !out.is_dir() {
        bail!("{} is a file: name a new or empty folder", out.display());
    }
    if out.is_dir() && fs::read_dir(out)?.next().is_some() {
        bail!("the folder {} is not empty: name a new or empty one", out.display());
    }
    let start = Instant::now();
    let name = out.file_name().with_context(|| format!("{} does not name a folder", out.display()))?;
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent)?;
    let partial = Partial(parent.join(format!(".{}.{}.partial", name.to_string_lossy(), std::process::id())));
    for style in STYLES {
        fs::create_dir_all(partial.0.join(style.slug))?;
    }
    let total = STYLES.len() * per_class;
    let done = AtomicUsize::new(0);
    let lines = (0..total)
        .into_par_iter()
        .map(|k| {
            if interrupt.requested() {
                return Err(Interrupted { kept: format!("nothing was written to {}", out.display()) }.into());
            }
            let (style, number) = (k / per_class, k % per_class);
            let subject = number % SUBJECTS.len();
            let file = format!("{}/{number:04}.png", STYLES[style].slug);
            let path = partial.0.join(&file);
            let image = paint(style, subject, seed, number as u64, size);
            image.save(&path).with_context(|| format!("writing {}", path.display()))?;
            progress(done.fetch_add(1, Ordering::Relaxed) + 1, total);
            // Any variant of the caption will do, as long as it changes from one painting to the next.
            let caption = caption(style, subject, CaptionKind::Full, (number / SUBJECTS.len() + 5 * style) as u64);
            let line = Line { file, style: STYLES[style].slug, subject: SUBJECTS[subject].slug, caption };
            Ok(serde_json::to_string(&line)? + "\n")
        })
        .collect::<Result<Vec<String>>>()?;
    fs::write(partial.0.join("captions.jsonl"), lines.concat())?;
    if out.is_dir() {
        fs::remove_dir(out)?;
    }
    fs::rename(&partial.0, out)?;
    Ok(Written { paintings: total, time: start.elapsed() })
}

/// Returns all styles × subjects on one sheet: one row per style, three styles beside each other, `size` pixels per
/// painting.
pub fn contact_sheet(size: u32, seed: u64) -> RgbImage {
    let (across, gap) = (3, size / 32 + 1);
    let (styles, subjects) = (STYLES.len() as u32, SUBJECTS.len() as u32);
    let rows = styles.div_ceil(across);
    let block = subjects * (size + gap) + 3 * gap;
    let mut sheet = RgbImage::from_pixel(across * block, rows * (size + gap) + gap, Rgb([250; 3]));
    let images: Vec<RgbImage> = (0..styles * subjects)
        .into_par_iter()
        .map(|k| paint((k / subjects) as usize, (k % subjects) as usize, seed, u64::from(k % subjects), size))
        .collect();
    for (k, image) in images.iter().enumerate() {
        let (style, subject) = (k as u32 / subjects, k as u32 % subjects);
        let x = style / rows * block + subject * (size + gap) + gap;
        imageops::replace(&mut sheet, image, i64::from(x), i64::from(style % rows * (size + gap) + gap));
    }
    sheet
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use procedural_art::all_captions;

    use super::*;

    /// Every file of a folder with its bytes, by relative path.
    fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                files.extend(contents(&path).into_iter().map(|(file, bytes)| (format!("{name}/{file}"), bytes)));
            } else {
                files.push((name, std::fs::read(&path).unwrap()));
            }
        }
        files.sort();
        files
    }

    #[test]
    fn a_folder_is_the_same_with_any_number_of_threads() {
        let root = tempfile::tempdir().unwrap();
        let write = |threads: usize| {
            let out = root.path().join(format!("with-{threads}"));
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let written = pool.install(|| write_folder(&out, 9, 32, 11, |_, _| {}, &Interrupt::default())).unwrap();
            assert_eq!(written.paintings, 27 * 9);
            contents(&out)
        };
        let files = write(1);
        assert_eq!(files.len(), 27 * 9 + 1);
        assert!(files == write(3), "threads change the folder");
        let (_, lines) = files.iter().find(|(name, _)| name == "captions.jsonl").unwrap();
        let captions: BTreeSet<String> = all_captions().into_iter().collect();
        let lines: Vec<serde_json::Value> =
            std::str::from_utf8(lines).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 27 * 9);
        for line in &lines {
            let file = line["file"].as_str().unwrap();
            assert!(files.iter().any(|(name, _)| name == file), "{file}");
            assert!(file.starts_with(line["style"].as_str().unwrap()));
            assert!(captions.contains(line["caption"].as_str().unwrap()));
        }
        assert_eq!(lines[8]["file"], "abstract-expressionism/0008.png");
        assert_eq!(lines[8]["subject"], "man");
    }

    #[test]
    fn a_full_folder_is_refused_and_an_interrupted_one_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("paintings");
        let interrupt = Interrupt::default();
        interrupt.request();
        let error = write_folder(&out, 8, 32, 0, |_, _| {}, &interrupt).unwrap_err();
        assert!(error.is::<Interrupted>(), "{error:#}");
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);

        std::fs::create_dir(&out).unwrap();
        write_folder(&out, 1, 32, 0, |_, _| {}, &Interrupt::default()).unwrap();
        let error = write_folder(&out, 1, 32, 0, |_, _| {}, &Interrupt::default()).unwrap_err();
        assert!(format!("{error:#}").contains("is not empty"), "{error:#}");
    }
}
