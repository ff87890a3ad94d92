//! How processes find each other: by the variables of a launcher, or started by the first of them.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use tch::Tensor;
use torch_ext::distributed::{ProcessGroup, Store};

use super::{Backend, Group, Processes, give_signs_of_life};

/// The flag by which a command starts its processes itself.
pub(super) const NPROC: &str = "--nproc";
/// How long processes that end are waited for before they are killed.
const END_WAIT: Duration = Duration::from_secs(10);
/// The pause between two looks at them.
const END_PAUSE: Duration = Duration::from_millis(20);

/// The place of a process among those that work together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The rank, from 0.
    pub(super) rank: usize,
    /// Number of processes.
    pub(super) count: usize,
    /// The rank among the processes of the same machine.
    pub(super) local_rank: usize,
    /// Number of processes on the same machine.
    local_count: usize,
    /// Host and port of the store.
    host: String,
    port: u16,
    /// Whether this process serves the store.
    serves: bool,
    /// The prefix of the keys of this start of the processes.
    prefix: String,
}

impl Place {
    /// Returns the place of a process on one machine with all others, whose store somebody else serves.
    pub(super) fn new(rank: usize, count: usize, host: &str, port: u16) -> Self {
        Self {
            rank,
            count,
            local_rank: rank,
            local_count: count,
            host: host.to_owned(),
            port,
            serves: false,
            prefix: String::new(),
        }
    }

    /// Returns the place that a launcher's variables name; none without them, or for a single process.
    ///
    /// # Errors
    /// If a variable is missing or not a number.
    pub fn of_launcher() -> Result<Option<Self>> {
        Self::of_variables(&env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v))).collect())
    }

    fn of_variables(variables: &BTreeMap<String, OsString>) -> Result<Option<Self>> {
        let text = |name: &str| variables.get(name).map(|value| value.to_string_lossy().into_owned());
        fn number<T: FromStr>(name: &str, text: Option<String>) -> Result<Option<T>> {
            let parse = |text: String| {
                let number = text.parse().ok();
                number.with_context(|| format!("{name}={text} is not a number of the right size: a launcher sets it"))
            };
            text.map(parse).transpose()
        }
        let Some(count) = number::<usize>("WORLD_SIZE", text("WORLD_SIZE"))?.filter(|count| *count > 1) else {
            return Ok(None);
        };
        let needed = |name: &str| text(name).with_context(|| format!("WORLD_SIZE is {count}, but {name} is not set"));
        let rank = number("RANK", Some(needed("RANK")?))?.unwrap_or(0);
        ensure!(rank < count, "RANK is {rank}, but WORLD_SIZE is {count}: ranks count from 0");
        let local_count = number("LOCAL_WORLD_SIZE", text("LOCAL_WORLD_SIZE"))?.unwrap_or(1);
        // torchrun itself may serve the store, for one start after the other.
        let is_served = text("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value == "True");
        let restarts = text("TORCHELASTIC_RESTART_COUNT").unwrap_or_else(|| "0".to_owned());
        Ok(Some(Self {
            rank,
            count,
            local_rank: number("LOCAL_RANK", text("LOCAL_RANK"))?.unwrap_or(0),
            local_count,
            host: needed("MASTER_ADDR")?,
            port: number("MASTER_PORT", Some(needed("MASTER_PORT")?))?.unwrap_or(0),
            serves: rank == 0 && !is_served,
            prefix: if is_served { format!("/worker/attempt_{restarts}") } else { String::new() },
        }))
    }

    /// Whether this is the first process.
    pub fn is_first(&self) -> bool {
        self.rank == 0
    }

    /// The rank, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }
}

/// Returns the number of threads of each process: the cores shared by those that `place` or `nproc` puts on this machine.
pub fn threads_of_each(cores: usize, place: Option<&Place>, nproc: Option<usize>) -> usize {
    let local = place.map(|place| place.local_count).or(nproc).unwrap_or(1);
    (cores / local.max(1)).max(1)
}

impl Processes {
    /// Connects this process with the others of its place. An exchange fails if another process does not come within the
    /// timeout.
    ///
    /// # Errors
    /// If the others do not come.
    pub fn join(place: Place, timeout: Duration, backend: Option<Backend>) -> Result<Self> {
        Self::connect(place, timeout, backend, Children::default())
    }

    /// Starts this program `count - 1` more times, as processes that work together with this one, which is the first.
    ///
    /// # Errors
    /// If a process cannot be started.
    pub fn start(count: usize, program: Option<&Path>, timeout: Duration, backend: Option<Backend>) -> Result<Self> {
        let program = program.context("this program's own file is not known, so that it cannot be started again")?;
        let store = Store::serve(0, timeout)?;
        let mut children = Children { processes: vec![], store: Some(store) };
        let port = children.store.as_ref().map_or(0, Store::port);
        for rank in 1..count {
            let mut command = Command::new(program);
            command.args(without_nproc(env::args_os().skip(1)));
            let variables = [("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", count), ("LOCAL_WORLD_SIZE", count)];
            for (name, value) in variables {
                command.env(name, value.to_string());
            }
            command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
            command.env("TORCHELASTIC_USE_AGENT_STORE", "True").env("TORCHELASTIC_RESTART_COUNT", "0");
            // In a process group of its own: Ctrl-C reaches the first process, which tells the others.
            command.stdin(Stdio::null()).process_group(0);
            let child = command.spawn().with_context(|| format!("process {rank} cannot be started"))?;
            children.processes.push((rank, child));
        }
        let place = Place { prefix: "/worker/attempt_0".to_owned(), ..Place::new(0, count, "127.0.0.1", port) };
        Self::connect(place, timeout, backend, children)
    }

    pub(super) fn connect(
        place: Place,
        timeout: Duration,
        backend: Option<Backend>,
        mut children: Children,
    ) -> Result<Self> {
        let connected = (|| {
            let store = Store::connect(&place.host, place.port, place.serves, &place.prefix, timeout)?;
            let mut connection = ProcessGroup::connect(&store, &place.host, place.rank, place.count, timeout)?;
            // Nobody goes on, and perhaps ends, while another process still connects.
            let _ = connection.gather(&Tensor::from_slice(&[0i64]))?;
            anyhow::Ok((Arc::new(store), connection))
        })();
        let (store, connection) = match connected {
            Ok(connected) => connected,
            Err(error) => {
                let ended = children.ended();
                children.end();
                let Place { rank, count, host, port, .. } = place;
                let why = ended.map_or_else(|| format!("{error:#}"), |error| format!("{error:#}"));
                bail!("process {rank} of {count} cannot reach the others at {host}:{port}: {why}");
            }
        };
        let children = Mutex::new(children);
        let _life = give_signs_of_life(place.rank, &store);
        let (exchanges, microseconds) = (AtomicU64::new(0), AtomicU64::new(0));
        let connection = Mutex::new(connection);
        let group = Group { place, connection, backend, store, timeout, _life, exchanges, microseconds, children };
        Ok(Self(Some(Arc::new(group))))
    }
}

/// Returns arguments without `--nproc N`.
fn without_nproc(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let (mut kept, mut skips) = (vec![], false);
    for argument in arguments {
        let is_flag = argument == NPROC;
        if !skips && !is_flag && !argument.to_string_lossy().starts_with(&format!("{NPROC}=")) {
            kept.push(argument);
        }
        skips = is_flag;
    }
    kept
}

/// The processes that this one started, by rank, and the store that it serves for them.
#[derive(Debug, Default)]
pub(super) struct Children {
    processes: Vec<(usize, Child)>,
    store: Option<Store>,
}

impl Children {
    /// Returns the error of a process that has ended, if one has.
    fn ended(&mut self) -> Option<anyhow::Error> {
        let ended = |(rank, child): &mut (usize, Child)| {
            let status = child.try_wait().ok().flatten().filter(|status| !status.success())?;
            Some(anyhow!("process {rank} has ended ({status})"))
        };
        self.processes.iter_mut().find_map(ended)
    }

    /// Asks the processes to stop, and kills those that do not.
    pub(super) fn end(&mut self) {
        for (_, child) in &self.processes {
            // SAFETY: the process is a child that was not waited for, so that its id is still its own.
            unsafe { libc::kill(child.id().cast_signed(), libc::SIGTERM) };
        }
        let end = Instant::now() + END_WAIT;
        for (_, mut child) in self.processes.drain(..) {
            while matches!(child.try_wait(), Ok(None)) && Instant::now() < end {
                thread::sleep(END_PAUSE);
            }
            if matches!(child.try_wait(), Ok(None)) {
                drop(child.kill());
                drop(child.wait());
            }
        }
    }

    /// Waits until the processes have ended by themselves.
    pub(super) fn wait(&mut self, timeout: Duration) -> Result<()> {
        let end = Instant::now() + timeout;
        for (rank, child) in &mut self.processes {
            let status = loop {
                match child.try_wait()? {
                    Some(status) => break status,
                    None if Instant::now() > end => bail!("process {rank} does not end"),
                    None => thread::sleep(END_PAUSE),
                }
            };
            ensure!(status.success(), "process {rank} failed ({status}) although all was done");
        }
        self.processes.clear();
        Ok(())
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> BTreeMap<String, OsString> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect()
    }

    #[test]
    fn a_place_is_what_the_launcher_says() {
        let of = |pairs: &[(&str, &str)]| Place::of_variables(&variables(pairs)).map_err(|error| error.to_string());
        assert_eq!(of(&[]), Ok(None));
        assert_eq!(of(&[("WORLD_SIZE", "1"), ("RANK", "0")]), Ok(None));
        let two = [("WORLD_SIZE", "2"), ("RANK", "0"), ("MASTER_ADDR", "node0"), ("MASTER_PORT", "29500")];
        let place = of(&two).expect("complete").expect("two processes");
        assert!(place.serves && place.is_first() && place.prefix.is_empty());
        let mut torchrun = two.to_vec();
        torchrun.extend([("TORCHELASTIC_USE_AGENT_STORE", "True"), ("TORCHELASTIC_RESTART_COUNT", "3")]);
        torchrun.extend([("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")]);
        let place = of(&torchrun).expect("complete").expect("two processes");
        assert_eq!((place.serves, place.prefix.as_str(), place.local_rank), (false, "/worker/attempt_3", 1));
        assert_eq!(threads_of_each(8, Some(&place), None), 4);
        assert_eq!(
            (threads_of_each(8, None, Some(3)), threads_of_each(2, None, Some(3)), threads_of_each(8, None, None)),
            (2, 1, 8)
        );
        assert_eq!(of(&two[..3]), Err("WORLD_SIZE is 2, but MASTER_PORT is not set".to_owned()));
        let message = of(&[("WORLD_SIZE", "two")]).expect_err("no number");
        assert_eq!(message, "WORLD_SIZE=two is not a number of the right size: a launcher sets it");
        let beyond = of(&[("WORLD_SIZE", "2"), ("RANK", "2")]);
        assert_eq!(beyond, Err("RANK is 2, but WORLD_SIZE is 2: ranks count from 0".to_owned()));
    }

    #[test]
    fn the_flag_that_starts_processes_is_not_handed_on() {
        let kept = |arguments: &[&str]| without_nproc(arguments.iter().map(OsString::from));
        assert_eq!(kept(&["train", "--nproc", "2", "--plugin", "p"]), ["train", "--plugin", "p"]);
        assert_eq!(kept(&["train", "--nproc=2", "--seed", "3"]), ["train", "--seed", "3"]);
    }
}
