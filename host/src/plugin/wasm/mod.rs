//! Plugins as WebAssembly components in a sandbox: no WASI, a budget of fuel, a clock, a cap on memory. Every batch
//! gets a fresh instance, so that a failed call leaves no state behind.

mod cache;
mod compiler;
mod failure;
mod guest;
mod nan;
mod ticker;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use ambiguity_sdk::{Medium, OptionType};
use ndarray::Array2;
use wasmtime::component::{Component, HasSelf, Instance, InstancePre, Linker, Resource};
use wasmtime::{Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, Store, UpdateDeadline};

use self::bindings::ambiguity::plugin::types;
use self::bindings::exports::ambiguity::plugin::{classifier, description, gradient, pixel_gradient, scorer};
use self::cache::Cache;
use self::compiler::Failure;
pub(super) use self::compiler::serve;
use self::failure::{explain, not_compiled};
use self::guest::{Facts, Guest};
use self::nan::InvalidFlag;
use self::ticker::Ticker;
use super::artifact::{Artifact, supported_versions};
use super::batch::Batch;
use super::confined::Launcher;
use super::distributions::Distributions;
use super::error::{Fault, PluginError, quoted, quoted_name};
use super::inspection::Bounds;
use super::limits::{Limits, MAX_INSTANCES, MAX_ITEMS, mib};
use super::store::Found;
use super::{
    Description, Glance, Inspection, Kind, OptionInfo, Output, Plugin, PluginSource, Scale, Values, check_description,
    check_digest, check_encoders, options,
};
use crate::encoders::Encoders;

/// Bindings of the world with all exports. They are looked up per interface, because no plugin has all of them.
mod bindings {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "every-export",
        imports: { default: trappable },
        with: { "ambiguity:plugin/samples.batch": super::guest::BatchHandle },
    });
}

/// The parts that all WebAssembly plugins share: the compiled code's engine, and the cache of compiled code.
pub(super) struct Sandbox {
    runtime: Runtime,
    /// The runtime in whose code all NaNs are the same; it is started for the first call that makes one.
    canonical: OnceLock<Runtime>,
    limits: Limits,
    cache: Option<Cache>,
    /// Starts the processes that compile; without it, this one compiles.
    launcher: Option<Launcher>,
}

/// An engine, its clock and the linked interfaces.
struct Runtime {
    nans: Nans,
    engine: Engine,
    linker: Linker<Guest>,
    /// Kept for as long as any plugin may run.
    _ticker: Ticker,
}

/// What the compiled code does about the bits of a NaN that an operation makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nans {
    /// They are the processor's.
    AsComputed,
    /// Each operation replaces a NaN by the canonical one, which takes up to twice the time.
    Canonical,
}

impl Runtime {
    fn start(limits: &Limits, nans: Nans) -> wasmtime::Result<Self> {
        let engine = running_engine(limits, nans)?;
        let mut linker = Linker::new(&engine);
        bindings::EveryExport::add_to_linker::<_, HasSelf<_>>(&mut linker, |guest: &mut Guest| guest)?;
        let ticker = Ticker::start(&engine)?;
        Ok(Self { nans, engine, linker, _ticker: ticker })
    }
}

impl Sandbox {
    pub(super) fn new(
        limits: Limits,
        cache_folder: Option<PathBuf>,
        launcher: Option<Launcher>,
    ) -> wasmtime::Result<Self> {
        let runtime = Runtime::start(&limits, Nans::AsComputed)?;
        let cache = cache_folder.map(Cache::new);
        Ok(Self { runtime, canonical: OnceLock::new(), limits, cache, launcher })
    }

    /// Returns the runtime in whose code all NaNs are the same.
    fn canonical(&self) -> wasmtime::Result<&Runtime> {
        if let Some(runtime) = self.canonical.get() {
            return Ok(runtime);
        }
        let runtime = Runtime::start(&self.limits, Nans::Canonical)?;
        Ok(self.canonical.get_or_init(|| runtime))
    }

    /// Returns a plugin's compiled code: from the cache, otherwise from the compiler.
    fn compiled(&self, runtime: &Runtime, path: &Path, artifact: &Artifact) -> Result<Component, Fault> {
        let compile = || compiler::compile(self.launcher.as_ref(), &runtime.engine, runtime.nans, artifact.bytes());
        let component = match &self.cache {
            Some(cache) => cache.get(&runtime.engine, &artifact.sha256, compile),
            None => compile(),
        };
        component.map_err(|failure| match failure {
            Failure::Refused(message) => not_compiled(path, artifact.bytes(), message),
            Failure::Fault(fault) => fault,
        })
    }

    /// Compiles a plugin, checks that it fits the interface, and asks it to describe itself.
    pub(super) fn load(
        self: &Arc<Self>,
        found: &Found,
        config: BTreeMap<String, String>,
        sha256: Option<&str>,
    ) -> Result<WasmPlugin, PluginError> {
        let at = |fault| PluginError::new(&found.name, fault);
        let artifact = Artifact::read(&found.path, &self.limits).map_err(at)?;
        check_digest(&artifact.sha256, sha256).map_err(at)?;
        let component = self.compiled(&self.runtime, &found.path, &artifact).map_err(at)?;
        self.link(found, artifact, &component, config)
    }

    /// Reads a plugin's file without compiling it. It describes itself if it is in the cache of compiled code; otherwise
    /// the description is that of its manifest, if it has one.
    ///
    /// # Errors
    /// As for [`Sandbox::load`].
    pub(super) fn glance(self: &Arc<Self>, found: &Found) -> Result<Glance, PluginError> {
        let at = |fault| PluginError::new(&found.name, fault);
        let artifact = Artifact::read(&found.path, &self.limits).map_err(at)?;
        let compiled = self.cache.as_ref().and_then(|cache| cache.find(&self.runtime.engine, &artifact.sha256));
        if let Some(component) = compiled {
            let loaded = self.link(found, artifact, &component, BTreeMap::new())?;
            return Ok(Glance { sha256: loaded.source.sha256, description: Some(loaded.description) });
        }
        let manifest = artifact.manifest.as_ref().filter(|manifest| !manifest.styles.is_empty());
        let description = manifest.map(Description::of_manifest);
        if let Some(description) = &description {
            check_description(description, &self.limits).map_err(at)?;
        }
        Ok(Glance { sha256: artifact.sha256, description })
    }

    /// Checks that a compiled plugin fits the interface, and asks it to describe itself.
    fn link(
        self: &Arc<Self>,
        found: &Found,
        artifact: Artifact,
        component: &Component,
        config: BTreeMap<String, String>,
    ) -> Result<WasmPlugin, PluginError> {
        let plugin = &*found.name;
        let linked =
            Linked::new(&self.runtime, component, &artifact).map_err(|fault| PluginError::new(plugin, fault))?;
        let source = PluginSource {
            name: plugin.to_owned(),
            path: found.path.clone(),
            sha256: artifact.sha256.clone(),
            interface: artifact.interface.clone(),
            title: artifact.title(),
            published: found.published.clone(),
        };
        let facts = Facts::new(plugin, Arc::new(artifact), BTreeMap::new());
        let mut loaded = WasmPlugin {
            sandbox: Arc::clone(self),
            facts: Arc::new(facts),
            linked,
            canonical: OnceLock::new(),
            source,
            description: Description::default(),
            declared: Arc::new([]),
            peak_memory: None,
        };
        // Without any configuration at first, for the options that it may set.
        loaded.description = loaded.describe()?;
        if !config.is_empty() {
            options::check(&config, &loaded.description.options).map_err(|fault| PluginError::new(plugin, fault))?;
            loaded.facts = Arc::new(Facts::new(plugin, Arc::clone(&loaded.facts.artifact), config));
            loaded.description = loaded.describe()?;
        }
        loaded.declared = loaded.description.encoders.clone().into();
        Ok(loaded)
    }
}

/// Returns an engine that compiles.
fn engine(limits: &Limits, nans: Nans) -> wasmtime::Result<Engine> {
    Engine::new(&configuration(limits, nans))
}

/// Returns an engine that runs what [`engine`] compiled. Instances are taken from a pool, whose memory stays mapped between
/// calls: a call of a small plugin then takes two thirds of the time. Where the addresses for a pool are missing, as under
/// `ulimit -v`, each instance maps its own memory.
fn running_engine(limits: &Limits, nans: Nans) -> wasmtime::Result<Engine> {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(MAX_INSTANCES).total_core_instances(MAX_INSTANCES);
    pool.total_memories(MAX_INSTANCES).max_memories_per_module(MAX_INSTANCES);
    pool.total_tables(MAX_INSTANCES).max_tables_per_module(MAX_INSTANCES);
    // The guest's own limits are lower; what exceeds these would be refused without their message.
    pool.max_memory_size(1 << 32).table_elements(MAX_ITEMS as usize);
    pool.max_component_instance_size(POOLED_MIB << 20).max_core_instance_size(POOLED_MIB << 20);
    pool.linear_memory_keep_resident(RESIDENT_KIB << 10).table_keep_resident(RESIDENT_KIB << 10);
    pool.pagemap_scan(Enabled::Auto);
    let mut config = configuration(limits, nans);
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    Engine::new(&config).or_else(|_| engine(limits, nans))
}

/// Size in MiB up to which the pool takes the bookkeeping of an instance.
const POOLED_MIB: usize = 64;

/// Size in KiB of a memory that stays mapped between two instances.
const RESIDENT_KIB: usize = 256;

fn configuration(limits: &Limits, nans: Nans) -> wasmtime::Config {
    let mut config = wasmtime::Config::new();
    config.consume_fuel(true);
    config.epoch_interruption(true);
    config.max_wasm_stack(limits.stack_kib << 10);
    // The same bits on every machine.
    config.wasm_relaxed_simd(false);
    config.cranelift_nan_canonicalization(nans == Nans::Canonical);
    config
}

/// A plugin's compiled code, linked, with its exports.
struct Linked {
    engine: Engine,
    pre: InstancePre<Guest>,
    description: description::GuestIndices,
    kind: KindIndices,
    gradient: Option<gradient::GuestIndices>,
    pixel_gradient: Option<pixel_gradient::GuestIndices>,
}

/// The exports of a plugin's kind.
enum KindIndices {
    Classifier(classifier::GuestIndices),
    Scorer(scorer::GuestIndices),
}

impl Linked {
    fn new(runtime: &Runtime, component: &Component, artifact: &Artifact) -> Result<Self, Fault> {
        let link = |error: wasmtime::Error| not_linked(&error, &artifact.interface);
        let pre = runtime.linker.instantiate_pre(component).map_err(link)?;
        let description = description::GuestIndices::new(&pre).map_err(link)?;
        let kind = match artifact.is_scorer() {
            false => KindIndices::Classifier(classifier::GuestIndices::new(&pre).map_err(link)?),
            true => KindIndices::Scorer(scorer::GuestIndices::new(&pre).map_err(link)?),
        };
        let gradient = artifact.is_differentiable().then(|| gradient::GuestIndices::new(&pre));
        let gradient = gradient.transpose().map_err(link)?;
        let pixel_gradient = artifact.is_pixel_differentiable().then(|| pixel_gradient::GuestIndices::new(&pre));
        let pixel_gradient = pixel_gradient.transpose().map_err(link)?;
        Ok(Self { engine: runtime.engine.clone(), pre, description, kind, gradient, pixel_gradient })
    }
}

/// Returns why a plugin cannot be linked. What this host lacks in an interface that it has was added to it later.
fn not_linked(error: &wasmtime::Error, interface: &str) -> Fault {
    let chain: Vec<String> = error.chain().map(ToString::to_string).collect();
    let name = |message: &str| message.split('`').nth(1).map(quoted_name);
    if let [interface, item, missing] = &chain[..]
        && missing.ends_with("implementation is missing")
        && let (Some(interface), Some(item)) = (name(interface), name(item))
    {
        return Fault::Newer { import: format!("`{item}` of `{interface}`"), host: supported_versions() };
    }
    Fault::Link { interface: interface.to_owned(), detail: error.root_cause().to_string() }
}

/// The outcome of a call.
struct Called<T> {
    /// The result, or the fault with the sample that it concerns.
    result: Result<T, (Option<usize>, Fault)>,
    guest: Guest,
    fuel: u64,
    /// Whether the plugin may have made a NaN, whose bits differ between architectures.
    made_nan: bool,
}

/// A plugin that is a WebAssembly component.
pub(super) struct WasmPlugin {
    sandbox: Arc<Sandbox>,
    facts: Arc<Facts>,
    linked: Linked,
    /// The same plugin in code where all NaNs are the same, compiled for the first call that makes one.
    canonical: OnceLock<Linked>,
    source: PluginSource,
    description: Description,
    declared: Arc<[String]>,
    peak_memory: Option<usize>,
}

impl WasmPlugin {
    fn describe(&self) -> Result<Description, PluginError> {
        let at = |fault| PluginError::new(&self.facts.plugin, fault);
        let guest = Guest::new(Arc::clone(&self.facts), self.sandbox.limits);
        let called = self.call(guest, 1, |linked, instance, store| {
            let described = linked.description.load(&mut *store, instance)?.call_describe(&mut *store)?;
            let kind = match &linked.kind {
                KindIndices::Classifier(classifier) => {
                    let styles = classifier.load(&mut *store, instance)?.call_styles(&mut *store)?;
                    styles.map(|styles| Kind::Classifier { styles })
                }
                KindIndices::Scorer(scorer) => {
                    let scale = scorer.load(&mut *store, instance)?.call_scale(&mut *store)?;
                    let scale = scale.map(|scorer::ScoreScale { higher_is_better, minimum, maximum }| Scale {
                        higher_is_better,
                        minimum,
                        maximum,
                    });
                    scale.map(Kind::Scorer)
                }
            };
            Ok(described.and_then(|described| Ok((described, kind?))))
        });
        let (described, kind) =
            called.result.map_err(|(_, fault)| at(fault))?.map_err(|message| at(Fault::Describe(quoted(&message))))?;
        let description = converted(described, kind).map_err(at)?;
        check_description(&description, &self.sandbox.limits).map_err(at)?;
        Ok(description)
    }

    /// Runs `work` on a fresh instance. If the plugin makes a NaN, it runs once more, in code where all NaNs are the same.
    fn call<T>(
        &self,
        guest: Guest,
        n_samples: usize,
        work: impl Fn(&Linked, &Instance, &mut Store<Guest>) -> wasmtime::Result<T>,
    ) -> Called<T> {
        let called = self.call_once(&self.linked, guest, n_samples, &work);
        // A call that takes too long would only do so again.
        if !called.made_nan || matches!(called.result, Err((_, Fault::Timeout { .. }))) {
            return called;
        }
        match self.canonical() {
            Ok(linked) => self.call_once(linked, called.guest.again(), n_samples, &work),
            Err(fault) => Called { result: Err((None, fault)), ..called },
        }
    }

    /// Returns the plugin in code where all NaNs are the same.
    fn canonical(&self) -> Result<&Linked, Fault> {
        if let Some(linked) = self.canonical.get() {
            return Ok(linked);
        }
        tracing::debug!(
            "plugin {}: a NaN was made, so it is compiled again, for NaNs that are the same",
            self.facts.plugin
        );
        let runtime = self.sandbox.canonical().map_err(|error| Fault::Sandbox(error.to_string()))?;
        let component = self.sandbox.compiled(runtime, &self.source.path, &self.facts.artifact)?;
        let linked = Linked::new(runtime, &component, &self.facts.artifact)?;
        Ok(self.canonical.get_or_init(|| linked))
    }

    fn call_once<T>(
        &self,
        linked: &Linked,
        guest: Guest,
        n_samples: usize,
        work: impl Fn(&Linked, &Instance, &mut Store<Guest>) -> wasmtime::Result<T>,
    ) -> Called<T> {
        let limits = self.sandbox.limits;
        let fuel = limits.fuel_for(n_samples);
        let mut store = Store::new(&linked.engine, guest);
        store.limiter(|guest| &mut guest.memory);
        store.set_hostcall_fuel(mib(limits.output_mib));
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(move |context| {
            if context.data().own_time() < Duration::from_millis(limits.timeout_ms) {
                return Ok(UpdateDeadline::Continue(1));
            }
            Err(wasmtime::Error::new(Fault::Timeout { limit_ms: limits.timeout_ms, functions: vec![] }))
        });
        let flag = InvalidFlag::lower();
        let result = store
            .set_fuel(fuel)
            .and_then(|()| linked.pre.instantiate(&mut store))
            .and_then(|instance| work(linked, &instance, &mut store));
        let made_nan = flag.is_raised();
        drop(flag);
        let used = fuel - store.get_fuel().unwrap_or(0);
        let mut guest = store.into_data();
        guest.report_lost_lines();
        let result = result.map_err(|error| (guest.sample, explain(error, &mut guest, &limits, fuel)));
        Called { result, guest, fuel: used, made_nan }
    }

    /// Runs `work`, a call of one of the plugin's functions on the batch, on a fresh instance. Returns its result and
    /// the fuel used; the batch and the encoders are restored even after a fault.
    fn call_on_batch<T>(
        &mut self,
        batch: &mut Batch,
        encoders: &mut Encoders,
        work: impl Fn(&Linked, &Instance, &mut Store<Guest>) -> wasmtime::Result<Result<T, String>>,
    ) -> Result<(T, u64), PluginError> {
        let pinned = self.facts.artifact.manifest.as_ref().and_then(|manifest| manifest.encoder.as_ref());
        check_encoders(&self.declared, pinned, encoders).map_err(|fault| self.error((None, fault)))?;
        let n_samples = batch.len();
        let mut guest = Guest::new(Arc::clone(&self.facts), self.sandbox.limits);
        guest.batch = std::mem::take(batch);
        guest.encoders = std::mem::take(encoders);
        guest.declared = Some(Arc::clone(&self.declared));
        let Called { result, mut guest, fuel, .. } = self.call(guest, n_samples, work);
        self.peak_memory = Some(guest.memory.peak);
        *batch = std::mem::take(&mut guest.batch);
        *encoders = std::mem::take(&mut guest.encoders);
        let returned = result.map_err(|fault| self.error(fault))?.map_err(|message| {
            let fault = guest.fault.take().unwrap_or(Fault::Refused(quoted(&message)));
            let sample = if matches!(fault, Fault::Refused(_)) { guest.sample } else { None };
            self.error((sample, fault))
        })?;
        Ok((returned, fuel))
    }

    /// Returns the number of outputs per sample: one per style, or the score.
    fn n_outputs(&self) -> usize {
        match &self.description.kind {
            Kind::Classifier { styles } => styles.len(),
            Kind::Scorer(_) => 1,
        }
    }

    /// Returns the error for a fault of this plugin, with the sample that it concerns.
    fn error(&self, (sample, fault): (Option<usize>, Fault)) -> PluginError {
        PluginError { plugin: self.facts.plugin.clone(), sample, fault }
    }
}

impl Plugin for WasmPlugin {
    fn peak_memory(&self) -> Option<usize> {
        self.peak_memory
    }

    fn describe_again(&self) -> Result<Option<Description>, PluginError> {
        self.describe().map(Some)
    }

    fn description(&self) -> &Description {
        &self.description
    }

    fn source(&self) -> &PluginSource {
        &self.source
    }

    fn inspect(&self) -> Inspection {
        self.facts.artifact.inspect()
    }

    fn bounds(&self) -> Bounds {
        let Limits { fuel, timeout_ms, memory_mib, .. } = self.sandbox.limits;
        Bounds { fuel: Some(fuel), milliseconds: timeout_ms, memory: Some(mib(memory_mib)) }
    }

    fn run(&mut self, batch: &mut Batch, encoders: &mut Encoders) -> Result<Output, PluginError> {
        if batch.is_empty() {
            let values = Values::none(&self.description.kind);
            return Ok(Output { values, fuel: Some(0), milliseconds: 0.0 });
        }
        let started = Instant::now();
        let n_samples = batch.len();
        let (returned, fuel) = self.call_on_batch(batch, encoders, |linked, instance, store| {
            Ok(match &linked.kind {
                KindIndices::Classifier(classifier) => {
                    let classifier = classifier.load(&mut *store, instance)?;
                    classifier.call_classify(&mut *store, Resource::new_borrow(0))?.map(Returned::Matrix)
                }
                KindIndices::Scorer(scorer) => {
                    let scorer = scorer.load(&mut *store, instance)?;
                    scorer.call_score(&mut *store, Resource::new_borrow(0))?.map(Returned::Scores)
                }
            })
        })?;
        let values = match (returned, &self.description.kind) {
            (Returned::Matrix(matrix), kind) => {
                let n_styles = if let Kind::Classifier { styles } = kind { styles.len() } else { 0 };
                let shape = (matrix.rows as usize, matrix.cols as usize, &matrix.data[..]);
                Distributions::check(shape, (n_samples, n_styles)).map(Values::Distributions)
            }
            (Returned::Scores(scores), Kind::Scorer(scale)) => Values::of_scores(scores, *scale, n_samples),
            (Returned::Scores(_), Kind::Classifier { .. }) => unreachable!("both are those of the plugin's exports"),
        };
        let values = values.map_err(|fault| self.error(fault))?;
        Ok(Output { values, fuel: Some(fuel), milliseconds: started.elapsed().as_secs_f64() * 1e3 })
    }

    fn embedding_vjp(
        &mut self,
        batch: &mut Batch,
        encoders: &mut Encoders,
        encoder: &str,
        upstream: &Array2<f32>,
    ) -> Result<Array2<f32>, PluginError> {
        if self.linked.gradient.is_none() {
            return Err(self.error((None, Fault::NoGradient)));
        }
        assert_eq!(upstream.dim(), (batch.len(), self.n_outputs()), "one number per sample and output");
        let dim = encoders.get(encoder).map_err(|error| self.error((None, Fault::Encoder(error))))?.info().dim;
        if batch.is_empty() {
            return Ok(Array2::zeros((0, dim)));
        }
        let upstream = guest::matrix(upstream);
        let (matrix, _) = self.call_on_batch(batch, encoders, |linked, instance, store| {
            let gradient = linked.gradient.as_ref().expect("the same plugin has the same exports");
            let gradient = gradient.load(&mut *store, instance)?;
            gradient.call_embedding_vjp(&mut *store, Resource::new_borrow(0), encoder, &upstream)
        })?;
        let shape = (matrix.rows as usize, matrix.cols as usize, matrix.data);
        super::gradient::check(shape, (batch.len(), dim)).map_err(|fault| self.error(fault))
    }

    fn pixel_vjp(
        &mut self,
        batch: &mut Batch,
        encoders: &mut Encoders,
        upstream: &Array2<f32>,
    ) -> Result<Vec<Vec<f32>>, PluginError> {
        if self.linked.pixel_gradient.is_none() {
            return Err(self.error((None, Fault::NoGradient)));
        }
        assert_eq!(upstream.dim(), (batch.len(), self.n_outputs()), "one number per sample and output");
        let mut gradients = Vec::with_capacity(batch.len());
        for (i, upstream) in upstream.rows().into_iter().enumerate() {
            let upstream = upstream.to_vec();
            let (gradient, _) = self.call_on_batch(batch, encoders, |linked, instance, store| {
                let gradient = linked.pixel_gradient.as_ref().expect("the same plugin has the same exports");
                let gradient = gradient.load(&mut *store, instance)?;
                gradient.call_pixel_vjp(&mut *store, Resource::new_borrow(0), i as u32, &upstream)
            })?;
            let n_values = batch.samples()[i].image.as_ref().map_or(0, |image| image.as_raw().len());
            super::gradient::check_pixels(&gradient, n_values).map_err(|fault| self.error((Some(i), fault)))?;
            gradients.push(gradient);
        }
        Ok(gradients)
    }
}

/// What a plugin returned, unchecked.
enum Returned {
    Matrix(types::Matrix),
    Scores(Vec<f64>),
}

/// Returns a plugin's description of itself in the host's types.
fn converted(described: description::Description, kind: Kind) -> Result<Description, Fault> {
    let description::Description { name, version, media, encoders, options, properties } = described;
    let medium = |name: &String| {
        let known = Medium::ALL.map(Medium::name).join(", ");
        let message = || format!("it takes `{}`, which this host does not know (it knows {known})", quoted_name(name));
        name.parse::<Medium>().map_err(|_| Fault::Description(message()))
    };
    let option = |option: description::PluginOption| OptionInfo {
        key: option.key,
        value_type: match option.value_type {
            description::OptionType::Text => OptionType::Text,
            description::OptionType::Integer => OptionType::Integer,
            description::OptionType::Number => OptionType::Number,
            description::OptionType::Boolean => OptionType::Boolean,
        },
        default: option.default,
        help: option.help,
    };
    Ok(Description {
        name,
        version,
        kind,
        media: media.iter().map(medium).collect::<Result<_, _>>()?,
        encoders,
        options: options.into_iter().map(option).collect(),
        properties,
    })
}
