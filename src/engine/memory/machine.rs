//! The memory that a process may use: that of the machine, or less where one of its control groups limits it.

use std::fs;
use std::path::{Path, PathBuf};

/// Values from here on are no limits: version 1 writes "no limit" as the greatest number of pages.
const UNLIMITED: u64 = 1 << 60;
/// One part in so many of the available memory is left to others.
const SHARE: u64 = 5;
/// The least limit that is computed, as less would not hold the builtin model.
const LEAST_BYTES: u64 = 64 << 20;

/// The memory of the machine, and the limit of this process's group.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Machine {
    /// Memory of the machine in bytes, where that is known.
    pub memory_bytes: Option<u64>,
    /// The least limit in bytes among the control groups that this process is in, and the directory of that
    /// group.
    pub group: Option<(u64, PathBuf)>,
}

impl Machine {
    /// The values for this process now.
    pub fn read() -> Machine {
        Machine::below(Path::new("/"))
    }

    /// As [`Machine::read`], with the files below another root.
    fn below(root: &Path) -> Machine {
        let file = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
        let mounts = file("proc/self/mountinfo");
        let limits = file("proc/self/cgroup")
            .lines()
            .filter_map(Membership::parse)
            .flat_map(|membership| {
                membership.directories(&mounts).into_iter().map(move |at| (membership.version, at))
            })
            .filter_map(|(version, directory)| {
                let limit = limit(version, &root.join(directory.strip_prefix("/").unwrap_or(&directory)))?;
                Some((limit, directory))
            })
            .collect::<Vec<_>>();
        Machine {
            memory_bytes: memory(&file("proc/meminfo")),
            group: limits.into_iter().min_by_key(|(limit, _)| *limit),
        }
    }

    /// Bytes that all processes of the machine, or of the group, may use together. None where nothing is
    /// known.
    pub fn available_bytes(&self) -> Option<u64> {
        let group = self.group.as_ref().map(|(limit, _)| *limit);
        self.memory_bytes.into_iter().chain(group).min()
    }

    /// A limit for an engine beside `taken` bytes that others use permanently: the available memory, less a
    /// fifth of it for everything else and less those, but at least 64 MB. None where nothing is known.
    pub fn engine_bytes(&self, taken: u64) -> Option<u64> {
        let available = self.available_bytes()?;
        Some((available - available / SHARE).saturating_sub(taken).max(LEAST_BYTES))
    }
}

/// The version of control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// A line of /proc/self/cgroup: a group that the process is in.
struct Membership<'a> {
    version: Version,
    path: &'a str,
}

impl<'a> Membership<'a> {
    /// Reads a line of the process's groups; None for groups that have nothing to do with memory.
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.splitn(3, ':');
        let (id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let version = match controllers {
            "" if id == "0" => Version::Two,
            _ if controllers.split(',').any(|controller| controller == "memory") => Version::One,
            _ => return None,
        };
        Some(Membership { version, path })
    }

    /// Directories of the group and of its ancestors, as far as they are visible.
    fn directories(&self, mounts: &str) -> Vec<PathBuf> {
        let Some((inside, at)) = mounts.lines().find_map(|line| mounted(line, self.version)) else {
            return Vec::new();
        };
        // In a container the mount shows a part of the hierarchy, and a process that was moved out of it lies
        // outside.
        let path = Path::new(self.path).strip_prefix(&inside).unwrap_or(Path::new(""));
        let outside = path.components().any(|part| part.as_os_str() == "..");
        let path = if outside { Path::new("") } else { path };
        let depth = path.components().count();
        at.join(path).ancestors().take(depth + 1).map(Path::to_owned).collect()
    }
}

/// The mounted part of a hierarchy and its mount point, if the line of mountinfo is about a hierarchy of this
/// version with memory.
fn mounted(line: &str, version: Version) -> Option<(PathBuf, PathBuf)> {
    let (before, after) = line.split_once(" - ")?;
    let mut after = after.split(' ');
    let (kind, _, options) = (after.next()?, after.next()?, after.next()?);
    let right = match version {
        Version::One => kind == "cgroup" && options.split(',').any(|option| option == "memory"),
        Version::Two => kind == "cgroup2",
    };
    let mut before = before.split(' ').skip(3);
    let (inside, at) = (before.next()?, before.next()?);
    right.then(|| (unescape(inside), unescape(at)))
}

/// The kernel writes spaces, tabs, line feeds and backslashes in octal.
fn unescape(path: &str) -> PathBuf {
    let spelt = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    PathBuf::from(
        spelt.iter().fold(path.to_owned(), |path, (octal, character)| path.replace(octal, character)),
    )
}

/// The limit of a group, without those of its ancestors.
fn limit(version: Version, directory: &Path) -> Option<u64> {
    let names: &[&str] = match version {
        Version::One => &["memory.limit_in_bytes"],
        // Above `high` a group is slowed down until it is useless.
        Version::Two => &["memory.max", "memory.high"],
    };
    let number = |name: &&str| fs::read_to_string(directory.join(name)).ok()?.trim().parse::<u64>().ok();
    names.iter().filter_map(number).filter(|limit| *limit < UNLIMITED).min()
}

/// MemTotal of /proc/meminfo in bytes.
fn memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use tempfile::TempDir;

    use super::Machine;

    const GB: u64 = 1 << 30;
    const V2: &str = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1: &str = "31 24 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                      32 24 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";

    /// A made-up root with these files.
    fn machine(files: &[(&str, &str)]) -> Machine {
        let root = TempDir::new().unwrap();
        let meminfo = [("proc/meminfo", "MemTotal:       67108864 kB\nMemFree:  1 kB\n")];
        for (path, content) in meminfo.iter().chain(files) {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        Machine::below(root.path())
    }

    fn group(machine: &Machine) -> Option<(u64, &Path)> {
        machine.group.as_ref().map(|(limit, path)| (*limit, &**path))
    }

    #[test]
    fn without_groups_the_machine_is_what_there_is() {
        let machine = machine(&[]);
        assert_eq!(machine, Machine { memory_bytes: Some(64 * GB), group: None });
        assert_eq!(machine.engine_bytes(8 * GB), Some(64 * GB - 64 * GB / 5 - 8 * GB));
        assert_eq!(Machine::default().engine_bytes(0), None);
    }

    #[test]
    fn the_least_limit_on_the_way_up_is_that_of_version_2() {
        let machine = machine(&[
            ("proc/self/cgroup", "0::/system.slice/postgres.service/worker\n"),
            ("proc/self/mountinfo", V2),
            ("sys/fs/cgroup/system.slice/memory.max", "4294967296\n"),
            ("sys/fs/cgroup/system.slice/postgres.service/memory.max", "8589934592\n"),
            ("sys/fs/cgroup/system.slice/postgres.service/worker/memory.max", "max\n"),
            ("sys/fs/cgroup/user.slice/memory.max", "1\n"),
        ]);
        assert_eq!(group(&machine), Some((4 * GB, Path::new("/sys/fs/cgroup/system.slice"))));
        assert_eq!(machine.available_bytes(), Some(4 * GB));
        assert_eq!(machine.engine_bytes(GB), Some(4 * GB - 4 * GB / 5 - GB));
        assert_eq!(machine.engine_bytes(9 * GB), Some(64 << 20), "never so little that nothing works");
    }

    #[test]
    fn high_counts_as_a_limit_too() {
        let machine = machine(&[
            ("proc/self/cgroup", "0::/a\n"),
            ("proc/self/mountinfo", V2),
            ("sys/fs/cgroup/a/memory.max", "8589934592\n"),
            ("sys/fs/cgroup/a/memory.high", "2147483648\n"),
        ]);
        assert_eq!(machine.available_bytes(), Some(2 * GB));
    }

    #[test]
    fn the_limit_of_version_1_is_found_beside_other_controllers_and_none_is_no_number() {
        let files = |own: &'static str| {
            [
                (
                    "proc/self/cgroup",
                    "12:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n1:name=systemd:/docker/x\n0::/\n",
                ),
                ("proc/self/mountinfo", V1),
                ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
                ("sys/fs/cgroup/memory/docker/memory.limit_in_bytes", "9223372036854771712\n"),
                ("sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes", own),
                ("sys/fs/cgroup/cpu/docker/x/memory.limit_in_bytes", "1\n"),
            ]
        };
        let limited = machine(&files("3221225472\n"));
        assert_eq!(group(&limited), Some((3 * GB, Path::new("/sys/fs/cgroup/memory/docker/x"))));
        assert_eq!(machine(&files("9223372036854771712\n")).group, None);
    }

    #[test]
    fn a_container_sees_its_own_group_at_the_mount() {
        let mount = "32 24 0:28 /docker/x /sys/fs/cgroup/memory\\040here ro - cgroup cgroup rw,memory\n";
        let limit = "sys/fs/cgroup/memory here/memory.limit_in_bytes";
        for path in ["/docker/x", "/../../elsewhere", "/not/there"] {
            let machine = machine(&[
                ("proc/self/cgroup", &format!("4:memory:{path}\n")),
                ("proc/self/mountinfo", mount),
                (limit, "1073741824\n"),
            ]);
            assert_eq!(group(&machine), Some((GB, Path::new("/sys/fs/cgroup/memory here"))), "{path}");
        }
    }

    #[test]
    fn what_cannot_be_understood_limits_nothing() {
        let machine = machine(&[
            ("proc/self/cgroup", "\n::\n0:\nx:memory\n0::/a\n4:memory:/a\n"),
            ("proc/self/mountinfo", "nonsense\n30 24 - cgroup2\n30 24 0:26 / /sys rw - cgroup2 c rw\n"),
            ("sys/a/memory.max", "-5\n"),
        ]);
        assert_eq!(machine.group, None);
    }

    /// A directory in which this process may make groups, for the test.
    #[cfg(target_os = "linux")]
    fn own_group() -> Option<PathBuf> {
        let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
        groups.lines().filter_map(super::Membership::parse).find_map(|membership| {
            let parent = membership.directories(&mounts).into_iter().next()?;
            let group = parent.join(format!("steadytext-test-{}", std::process::id()));
            std::fs::create_dir(&group).ok()?;
            let file = ["memory.max", "memory.limit_in_bytes"]
                .map(|name| group.join(name))
                .into_iter()
                .find(|file| file.exists());
            if file.is_some_and(|file| std::fs::write(file, "805306368").is_ok()) {
                return Some(group);
            }
            let _ = std::fs::remove_dir(&group);
            None
        })
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_in_a_real_group_reads_its_limit() {
        const TOLD: &str = "STEADYTEXT_TEST_GROUP";
        if let Some(group) = std::env::var_os(TOLD) {
            std::fs::write(Path::new(&group).join("cgroup.procs"), std::process::id().to_string()).unwrap();
            let machine = Machine::read();
            assert_eq!(machine.group, Some((768 << 20, PathBuf::from(group))), "{machine:?}");
            return;
        }
        // Where groups cannot be made, only the made-up ones above are tested.
        let Some(group) = own_group() else { return };
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "memory::machine::tests::a_process_in_a_real_group_reads_its_limit"])
            .env(TOLD, &group)
            .status()
            .unwrap();
        // The process has gone, and with it the last one in the group.
        let removed = std::fs::remove_dir(&group);
        assert!(status.success() && removed.is_ok(), "{status} {removed:?}");
    }
}
