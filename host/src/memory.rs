//! Available memory and peak memory use.

use std::path::Path;

use tch::Device;

/// Returns the free bytes of the GPU, or of the machine and the container that the process runs in; none where the
/// system does not report them.
pub fn available(device: Device) -> Option<u64> {
    match device {
        Device::Cuda(index) => torch_ext::cuda::memory(index).ok().map(|(free, _)| free),
        _ => {
            let machine = system_memory("/proc/meminfo", "MemAvailable:");
            machine.into_iter().chain(left_to_container(Path::new("/sys/fs/cgroup"))).min()
        }
    }
}

/// Returns the bytes of the machine's memory; none where the system does not report them.
pub fn total() -> Option<u64> {
    system_memory("/proc/meminfo", "MemTotal:")
}

/// Returns the bytes left by the container's limit (cgroup v2, as seen inside it); none without a limit.
fn left_to_container(cgroup: &Path) -> Option<u64> {
    let number = |name: &str| std::fs::read_to_string(cgroup.join(name)).ok()?.trim().parse::<u64>().ok();
    Some(number("memory.max")?.saturating_sub(number("memory.current")?))
}

/// Returns the peak memory in bytes: of the process, or on a GPU of what libtorch reserved there; none where the system does
/// not report it.
pub fn peak(device: Device) -> Option<u64> {
    match device {
        Device::Cuda(index) => torch_ext::cuda::peak_memory(index).ok(),
        _ => system_memory("/proc/self/status", "VmHWM:"),
    }
}

/// Returns the bytes of address space that the process has mapped; none where the system does not report them.
pub fn mapped() -> Option<u64> {
    system_memory("/proc/self/status", "VmSize:")
}

/// Reads a line `KEY N kB` of a file under /proc, in bytes.
fn system_memory(file: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_proc_is_read_in_bytes() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "MemTotal:       16000000 kB\nMemFree: 1 kB\n").expect("writable");
        let read = |key| system_memory(file.path().to_str().expect("a path"), key);
        assert_eq!((read("MemTotal:"), read("MemAvailable:")), (Some(16_384_000_000), None));
    }

    #[test]
    fn a_containers_limit_counts() {
        let cgroup = tempfile::tempdir().expect("a folder");
        assert_eq!(left_to_container(cgroup.path()), None);
        std::fs::write(cgroup.path().join("memory.current"), "300\n").expect("a file");
        std::fs::write(cgroup.path().join("memory.max"), "max\n").expect("a file");
        assert_eq!(left_to_container(cgroup.path()), None);
        std::fs::write(cgroup.path().join("memory.max"), "1000\n").expect("a file");
        assert_eq!(left_to_container(cgroup.path()), Some(700));
    }
}
