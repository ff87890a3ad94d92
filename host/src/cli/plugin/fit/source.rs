//! The data to fit: images, texts or embeddings as linfa's data sets, and the names of their clusters.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ambiguity_models::safetensors::read_safetensors;
use anyhow::{Context as _, Result, bail, ensure};
use linfa::{Dataset, DatasetBase};
use ndarray::{Array1, Array2};
use tch::Kind;

use crate::context::Context;
use crate::data::images::{ImageError, ImageLoader, find_images, warn_of_unreadable};
use crate::data::prompts::distinct_lines;
use crate::data::styles::{StyleFiles, hold_out};
use crate::encoders::{Embedded, Encoders, embed_files, stacked};
use crate::plugin::fit::{Labeled, name_clusters};
use crate::plugin::limits::{Limits, NAME_LENGTH, is_name};
use crate::plugin::user_cache;

/// The message of an interrupt.
pub(super) const KEPT: &str = "nothing was written";

/// Embeddings without classes.
pub(super) type Points = DatasetBase<Array2<f32>, Array1<()>>;

/// Number of texts in one embedding call.
const BATCH: usize = 128;

/// The items of a matrix's rows.
#[derive(Clone, Debug)]
pub(super) enum Items {
    /// Image files below a folder, and what read them.
    Images { root: PathBuf, files: Vec<PathBuf>, loader: Arc<ImageLoader> },
    /// Distinct texts.
    Texts(Vec<String>),
    /// Embeddings of unknown items.
    Embeddings,
}

/// A cluster or a class with its name.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Cluster {
    /// The style's name.
    pub name: String,
    /// Its items, the most typical first.
    pub members: Vec<usize>,
    /// For clusters of images in folders: the folder of most of them, and its share.
    pub folder: Option<(String, f64)>,
}

impl Cluster {
    /// Returns the folder that most of it belongs to, with its share.
    pub(super) fn note(&self) -> Option<String> {
        self.folder.as_ref().map(|(folder, share)| match *share >= 0.5 {
            true => format!("{:.0} % {folder}", share * 100.0),
            false => format!("at most {:.0} % of a folder", share * 100.0),
        })
    }
}

/// Images by class.
pub(super) struct Classes {
    pub names: Vec<String>,
    /// The images that could be read.
    pub items: Items,
    pub set: Labeled,
    /// Number of images of each class that could not be read.
    pub n_broken: Vec<usize>,
}

impl Items {
    /// Returns the plural noun of the items.
    pub(super) fn unit(&self) -> &'static str {
        match self {
            Self::Images { .. } => "images",
            Self::Texts(_) => "texts",
            Self::Embeddings => "embeddings",
        }
    }

    /// Returns what the items' embeddings are called.
    pub(super) fn embeddings(&self) -> &'static str {
        match self {
            Self::Images { .. } => "image embeddings",
            Self::Texts(_) => "text embeddings",
            Self::Embeddings => "embeddings",
        }
    }

    /// Names the clusters, in an order that does not depend on the initialization; returns their order by their old numbers
    /// and how they are named too. `labels` are the items' clusters, `members` the clusters' items, the nearest to the
    /// center first.
    pub(super) fn name(&self, labels: &[usize], members: &[Vec<usize>]) -> (Vec<usize>, Vec<Cluster>, &'static str) {
        let mut order: Vec<usize> = (0..members.len()).collect();
        // The first item of a cluster does not depend on the clusters' numbers.
        let first = |i: usize| members[i].iter().min();
        order.sort_by(|&a, &b| members[b].len().cmp(&members[a].len()).then(first(a).cmp(&first(b))));
        let number = |order: &[usize], name: &dyn Fn(usize, usize) -> String| -> Vec<Cluster> {
            let cluster = |(new, &old): (usize, &usize)| Cluster {
                name: name(new, old),
                members: members[old].clone(),
                folder: None,
            };
            order.iter().enumerate().map(cluster).collect()
        };
        let (clusters, method) = match self {
            Self::Images { root, files, .. } => {
                let folders: Vec<String> = files.iter().map(|file| style_folder(root, file)).collect();
                let names = name_clusters(labels, &folders, members.len());
                if names.from_folders {
                    order.sort_by(|&a, &b| names.names[a].cmp(&names.names[b]));
                }
                let mut clusters = number(&order, &|new, old| match names.from_folders {
                    true => names.names[old].clone(),
                    false => numbered(new),
                });
                for (cluster, &old) in clusters.iter_mut().zip(&order) {
                    cluster.folder = Some(names.majority[old].clone()).filter(|(folder, _)| !folder.is_empty());
                }
                let method = match (names.from_folders, folders.iter().all(String::is_empty)) {
                    (true, _) => "named by their folders, one to one",
                    (false, true) => "named by number",
                    (false, false) => "named by number, since they are not one to one with folders",
                };
                (clusters, method)
            }
            Self::Texts(texts) => {
                let name = |new: usize, old: usize| match members[old].first() {
                    Some(&nearest) if is_name(&texts[nearest]) => texts[nearest].clone(),
                    _ => numbered(new),
                };
                (number(&order, &name), "each named by the text closest to its center")
            }
            Self::Embeddings => (number(&order, &|new, _| numbered(new)), "named by number"),
        };
        (order, clusters, method)
    }
}

fn numbered(i: usize) -> String {
    format!("cluster-{:02}", i + 1)
}

/// Returns the folder below `root` that contains a file; empty if the file is in `root` itself.
fn style_folder(root: &Path, file: &Path) -> String {
    let mut below = file.strip_prefix(root).unwrap_or(file).components();
    let first = below.next().map(|part| part.as_os_str().to_string_lossy().into_owned());
    match below.next() {
        Some(_) => first.unwrap_or_default(),
        None => String::new(),
    }
}

/// Embeds the images below `root` that can be read; the others are named in warnings.
pub(super) fn images(
    root: &Path,
    encoder: &str,
    encoders: &mut Encoders,
    context: &Context,
) -> Result<(Items, Points)> {
    let (items, rows) = embed(root, &find_images(root)?, encoder, encoders, context)?;
    Ok((items, rows.into()))
}

/// Embeds the images of the classes that are the subfolders of `root`, those that can be read; the others are named in
/// warnings.
///
/// # Errors
/// Besides those of reading and embedding: if there are fewer than two classes or too many, or one has too few images to hold
/// `share` of them out.
pub(super) fn classes(
    root: &Path,
    share: f64,
    encoder: &str,
    encoders: &mut Encoders,
    context: &Context,
) -> Result<Classes> {
    let cache = user_cache().map(|folder| folder.join("images"));
    let StyleFiles { names, files } = StyleFiles::list(root, cache.as_deref(), &context.progress, &context.interrupt)?;
    check_names(root, &names, Limits::default().styles)?;
    // What no split can divide is refused before the work; the images that cannot be read are known after it.
    let all: Vec<usize> = files.iter().map(|file| file.style).collect();
    split(&names, &all, &vec![0; names.len()], share, 0)?;
    let paths: Vec<PathBuf> = files.iter().map(|file| file.path.clone()).collect();
    let (items, rows) = embed(root, &paths, encoder, encoders, context)?;
    let Items::Images { files: read, .. } = &items else { unreachable!("images were embedded") };
    // Those that were read are some of the files, in their order.
    let mut read = read.iter().peekable();
    let (mut classes, mut n_broken) = (vec![], vec![0; names.len()]);
    for file in &files {
        match read.next_if(|path| **path == file.path) {
            Some(_) => classes.push(file.style),
            None => n_broken[file.style] += 1,
        }
    }
    Ok(Classes { names, items, set: Dataset::new(rows, Array1::from(classes)), n_broken })
}

/// Checks the number of classes and their names.
fn check_names(root: &Path, names: &[String], limit: usize) -> Result<()> {
    let (root, n) = (root.display(), names.len());
    ensure!(n <= limit, "{root} has {n} folders with images, but the limit is {limit} styles");
    match names.iter().find(|name| !is_name(name)) {
        Some(name) => bail!(
            "the folder {root}/{name} is a style with too long a name: rename it, to {NAME_LENGTH} characters at most"
        ),
        None => Ok(()),
    }
}

/// Divides classified items into held-out ones and those to train on: `share` of each class, the same ones for the same
/// seed.
pub(super) fn split(
    names: &[String],
    classes: &[usize],
    n_broken: &[usize],
    share: f64,
    seed: u64,
) -> Result<(Vec<usize>, Vec<usize>)> {
    let mut by_class = vec![vec![]; names.len()];
    classes.iter().enumerate().for_each(|(item, &class)| by_class[class].push(item));
    let (mut held_out, mut training) = (vec![], vec![]);
    for (class, items) in by_class.into_iter().enumerate() {
        let (held_out_of_class, mut training_of_class) =
            hold_out(&names[class], class, items, n_broken[class], share, seed)?;
        training_of_class.sort_unstable();
        held_out.extend(held_out_of_class);
        training.extend(training_of_class);
    }
    Ok((held_out, training))
}

/// Embeds images, those that can be read; the others are named in warnings.
fn embed(
    root: &Path,
    found: &[PathBuf],
    encoder: &str,
    encoders: &mut Encoders,
    context: &Context,
) -> Result<(Items, Array2<f32>)> {
    let loader = Arc::new(ImageLoader::default());
    let mut errors = vec![];
    let mut skip = |error: ImageError| {
        errors.push(error.to_string());
        Ok(())
    };
    let Embedded { files, rows } =
        embed_files(found, encoder, encoders, &loader, user_cache().as_deref(), &mut skip, context)?;
    warn_of_unreadable(&errors, found.len());
    ensure!(!files.is_empty(), "none of the {} images below {} can be read", found.len(), root.display());
    Ok((Items::Images { root: root.to_owned(), files, loader }, rows))
}

/// Embeds a file's lines; empty and repeated ones and comments are left out.
pub(super) fn texts(file: &Path, encoder: &str, encoders: &mut Encoders, context: &Context) -> Result<(Items, Points)> {
    let texts = distinct_lines(file)?;
    ensure!(!texts.is_empty(), "{} has no texts: write one per line", file.display());
    encoders.get(encoder)?;
    let bar = context.progress.bar("embedding", texts.len() as u64, "texts");
    let mut rows = vec![];
    for chunk in texts.chunks(BATCH) {
        context.interrupt.check(KEPT)?;
        rows.push(encoders.embed_texts(encoder, chunk)?);
        bar.inc(chunk.len() as u64);
    }
    bar.finish();
    Ok((Items::Texts(texts), stacked(&rows).into()))
}

/// Reads a matrix from a safetensors file, as f32 whatever its type there.
pub(super) fn matrix(file: &Path, key: &str) -> Result<Array2<f32>> {
    let mut tensors = read_safetensors(file)?;
    let Some(tensor) = tensors.remove(key) else {
        let keys: Vec<String> = tensors.keys().map(|name| format!("`{name}`")).collect();
        let keys = if keys.is_empty() { "nothing".to_owned() } else { keys.join(", ") };
        bail!("{} has no tensor `{key}`, it has {keys}", file.display());
    };
    let shape = tensor.size();
    let [rows, columns] = shape[..] else {
        bail!("{}: `{key}` has shape {shape:?}, it must be a matrix with one row per item", file.display());
    };
    let flat = tensor.f_to_kind(Kind::Float).and_then(|tensor| tensor.f_contiguous()?.f_view([-1]));
    let data = Vec::<f32>::try_from(&flat.with_context(|| format!("{}: `{key}`", file.display()))?)?;
    Ok(Array2::from_shape_vec((rows as usize, columns as usize), data)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABELS: [usize; 3] = [0, 1, 1];

    /// The third point is closer to its center than the second.
    fn members() -> Vec<Vec<usize>> {
        vec![vec![0], vec![2, 1]]
    }

    fn images(names: [&str; 3]) -> Items {
        Items::Images {
            root: "art".into(),
            files: names.map(|name| Path::new("art").join(name)).to_vec(),
            loader: Arc::default(),
        }
    }

    #[test]
    fn the_style_is_the_first_folder_below_the_root() {
        let style = |file: &str| style_folder(Path::new("art"), Path::new(file));
        assert_eq!([style("art/cubism/a/1.png"), style("art/1.png")], ["cubism", ""]);
    }

    #[test]
    fn clusters_are_sorted_by_name_or_by_size() {
        let (by_name, clusters, _) = images(["b/1.png", "a/1.png", "a/2.png"]).name(&LABELS, &members());
        assert_eq!((clusters[0].name.as_str(), by_name), ("a", vec![1, 0]));
        assert_eq!((&clusters[0].members, &clusters[0].folder), (&vec![2, 1], &Some(("a".to_owned(), 1.0))));
        let (by_size, clusters, _) = images(["1.png", "2.png", "3.png"]).name(&LABELS, &members());
        assert_eq!(clusters.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["cluster-01", "cluster-02"]);
        assert_eq!((by_size, clusters[0].members.len(), &clusters[0].folder), (vec![1, 0], 2, &None));
    }

    #[test]
    fn clusters_of_texts_are_named_by_their_closest_text() {
        let texts = Items::Texts(["fog", "sun", "light"].map(String::from).to_vec());
        let (_, clusters, _) = texts.name(&LABELS, &members());
        assert_eq!(clusters.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["light", "fog"]);
    }

    #[test]
    fn the_split_is_of_each_class() {
        let names: Vec<String> = ["a", "b", "c"].map(String::from).to_vec();
        let classes: Vec<usize> = (0..60).map(|i| if i < 40 { 0 } else { 1 + i % 2 }).collect();
        let (held_out, training) = split(&names, &classes, &[0; 3], 0.2, 5).expect("enough of each");
        let of =
            |items: &[usize]| (0..3).map(|c| items.iter().filter(|&&i| classes[i] == c).count()).collect::<Vec<_>>();
        assert_eq!((of(&held_out), of(&training)), (vec![8, 2, 2], vec![32, 8, 8]));
        assert_eq!(split(&names, &classes, &[0; 3], 0.2, 5).expect("enough").0, held_out);
        assert_ne!(split(&names, &classes, &[0; 3], 0.2, 6).expect("enough").0, held_out);
        let (none, all) = split(&names, &classes, &[0; 3], 0.0, 5).expect("nothing is held out");
        assert_eq!((none.len(), all), (0, (0..40).chain((40..60).step_by(2)).chain((41..60).step_by(2)).collect()));
        let message = split(&names, &[0, 0, 1, 2, 2], &[0, 3, 0], 0.2, 0).expect_err("one of b").to_string();
        assert_eq!(message, "the style b has 1 image and 3 unreadable: too few to hold 1 out and train on the rest");
    }

    #[test]
    fn too_many_classes_and_long_names_are_refused() {
        let check = |names: &[String]| check_names(Path::new("art"), names, 10).map_err(|error| error.to_string());
        let names: Vec<String> = (0..12).map(|i| i.to_string()).collect();
        assert_eq!(check(&names), Err("art has 12 folders with images, but the limit is 10 styles".to_owned()));
        assert_eq!(check(&names[..10]), Ok(()));
        let message = check(&["a".repeat(201)]).expect_err("a long name");
        assert!(
            message.ends_with("is a style with too long a name: rename it, to 200 characters at most"),
            "{message}"
        );
    }
}
