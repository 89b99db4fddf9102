//! A disk that fails where a test wants, and that knows what a power cut would leave.
//!
//! It writes through to a real folder, which is what the program reads, and beside it keeps what is durable: of a file
//! its content when it was last forced to disk, of a folder its names when it was. What came after is volatile: a power
//! cut loses all of it, or any part of it in any order, as real file systems do (Pillai et al., *All File Systems Are
//! Not Created Equal*, OSDI 2014). A file whose forcing to disk has failed loses what it was to force, whatever
//! succeeds later: the system takes these pages for written.

use othink::disk::{Disk, DiskFile, SystemDisk};
use othink::rng::{Purpose, Stream};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Input or output error.
pub const EIO: i32 = 5;
/// No space left on device.
pub const ENOSPC: i32 = 28;
/// Read-only file system.
pub const EROFS: i32 = 30;

/// Which operations fail, counted from 0, and how.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Only operations that begin with this are counted (`sync`, `write run/metrics.jsonl`): with a thread that saves,
    /// the number of an operation among all is not the same in two runs.
    pub only: &'static str,
    /// The first one that fails.
    pub from: usize,
    /// How many fail.
    pub count: usize,
    /// The system's number of the error.
    pub errno: i32,
    /// Whether a write that fails has done half of its work.
    pub half: bool,
}

impl Fault {
    /// Operation `at` fails and no other.
    pub fn once(at: usize, errno: i32) -> Fault {
        Fault { only: "", from: at, count: 1, errno, half: errno == ENOSPC }
    }

    /// All operations from `at` on fail: the disk is full, gone, or without power.
    pub fn for_good(at: usize, errno: i32) -> Fault {
        Fault { only: "", from: at, count: usize::MAX - at, errno, half: errno == ENOSPC }
    }
}

/// See the module. Clones are the same disk.
#[derive(Clone, Debug)]
pub struct FaultyDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    root: PathBuf,
    /// Files and folders by their number; 0 is the root.
    nodes: Vec<Node>,
    /// Changes of names that no folder's forcing to disk has made durable, oldest first.
    names: Vec<NameChange>,
    /// What the operations were, and whether they failed.
    trace: Vec<(String, bool)>,
    fault: Option<Fault>,
}

type Names = BTreeMap<String, usize>;

#[derive(Debug)]
enum Node {
    File { length: usize, durable: Vec<u8>, changes: Vec<Change> },
    Folder { names: Names, durable: Names },
}

/// A change of a file's content that is not durable.
#[derive(Debug)]
enum Change {
    Write { at: usize, bytes: Vec<u8> },
    Truncate(usize),
}

/// A change of a folder's names that is not durable.
#[derive(Debug)]
enum NameChange {
    Add { folder: usize, name: String, node: usize },
    Remove { folder: usize, name: String },
    Rename { folder: usize, from: String, to: String, node: usize },
}

impl NameChange {
    fn folder(&self) -> usize {
        let (NameChange::Add { folder, .. }
        | NameChange::Remove { folder, .. }
        | NameChange::Rename { folder, .. }) = self;
        *folder
    }

    fn apply(&self, names: &mut Names) {
        match self {
            NameChange::Add { name, node, .. } => drop(names.insert(name.clone(), *node)),
            NameChange::Remove { name, .. } => drop(names.remove(name)),
            NameChange::Rename { from, to, node, .. } => {
                if names.get(from) == Some(node) {
                    names.remove(from);
                }
                names.insert(to.clone(), *node);
            }
        }
    }
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Change::Truncate(length) => content.resize(*length, 0),
            Change::Write { at, bytes } => {
                if content.len() < at + bytes.len() {
                    content.resize(at + bytes.len(), 0);
                }
                content[*at..at + bytes.len()].copy_from_slice(bytes);
            }
        }
    }

    /// Applies it wholly, in part, with its length alone, or not at all.
    fn apply_some(&self, content: &mut Vec<u8>, random: &mut Stream) {
        match (random.below(4), self) {
            (0, _) => {}
            (1, Change::Write { at, bytes }) => {
                let part = random.below(bytes.len() as u32 + 1) as usize;
                Change::Write { at: *at, bytes: bytes[..part].to_vec() }.apply(content);
            }
            (2, Change::Write { at, bytes }) => content.resize(content.len().max(at + bytes.len()), 0),
            _ => self.apply(content),
        }
    }
}

/// A folder for a disk, in memory where the system has one there: the tests make thousands.
pub fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

impl FaultyDisk {
    /// A disk over a folder, all of whose present content is durable.
    pub fn new(root: &Path) -> FaultyDisk {
        let mut nodes = vec![Node::Folder { names: Names::new(), durable: Names::new() }];
        read_folder(root, 0, &mut nodes);
        let state =
            State { root: root.to_path_buf(), nodes, names: Vec::new(), trace: Vec::new(), fault: None };
        FaultyDisk { state: Arc::new(Mutex::new(state)) }
    }

    /// The same, with a fault to come.
    pub fn with(root: &Path, fault: Fault) -> FaultyDisk {
        let disk = FaultyDisk::new(root);
        disk.lock().fault = Some(fault);
        disk
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Changing operations so far, those that failed included.
    pub fn operations(&self) -> usize {
        self.lock().trace.len()
    }

    /// How many of the operations so far begin with `kind`.
    pub fn operations_of(&self, kind: &str) -> usize {
        self.lock().trace.iter().filter(|(what, _)| what.starts_with(kind)).count()
    }

    /// The operations that failed, with their numbers.
    pub fn failed(&self) -> Vec<String> {
        let state = self.lock();
        let failed = state.trace.iter().enumerate().filter(|(_, (_, failed))| *failed);
        failed.map(|(n, (what, _))| format!("{n}: {what}")).collect()
    }

    /// Leaves in the real folder what a power cut now leaves: what is durable and, with a `seed`, a random part of what
    /// is not. The disk must not be written any more: a new one takes the folder over.
    pub fn cut_power(&self, seed: Option<u64>) {
        let state = self.lock();
        let mut random = seed.map(|seed| Stream::new(seed, Purpose::Task, 0));
        let mut folders: BTreeMap<usize, Names> = BTreeMap::new();
        for (id, node) in state.nodes.iter().enumerate() {
            if let Node::Folder { durable, .. } = node {
                folders.insert(id, durable.clone());
            }
        }
        if let Some(random) = &mut random {
            for change in state.names.iter().filter(|_| random.below(2) == 1) {
                folders.get_mut(&change.folder()).map(|names| change.apply(names)).unwrap();
            }
        }
        for entry in fs::read_dir(&state.root).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { fs::remove_dir_all(&path).unwrap() } else { fs::remove_file(&path).unwrap() }
        }
        state.write_folder(&state.root, 0, &folders, &mut random);
    }

    /// Counts an operation; fails if it is to fail. `Err` says whether half of it is done.
    fn begin(
        &self,
        what: &str,
        path: &Path,
    ) -> Result<MutexGuard<'_, State>, (MutexGuard<'_, State>, Fault)> {
        let mut state = self.lock();
        let below = path.strip_prefix(&state.root).unwrap_or(path).display();
        let what = format!("{what} {below}");
        let counts = |only: &str| state.trace.iter().filter(|(what, _)| what.starts_with(only)).count();
        let fault = state.fault.filter(|fault| {
            let n = if fault.only.is_empty() { state.trace.len() } else { counts(fault.only) };
            what.starts_with(fault.only) && n >= fault.from && n - fault.from < fault.count
        });
        state.trace.push((what, fault.is_some()));
        match fault {
            Some(fault) => Err((state, fault)),
            None => Ok(state),
        }
    }

    /// As [`FaultyDisk::begin`], where there is nothing to be half done.
    fn operation(&self, what: &str, path: &Path) -> io::Result<MutexGuard<'_, State>> {
        self.begin(what, path).map_err(|(_, fault)| io::Error::from_raw_os_error(fault.errno))
    }
}

fn read_folder(path: &Path, id: usize, nodes: &mut Vec<Node>) {
    for entry in fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        let child = nodes.len();
        if entry.path().is_dir() {
            nodes.push(Node::Folder { names: Names::new(), durable: Names::new() });
            read_folder(&entry.path(), child, nodes);
        } else {
            let durable = fs::read(entry.path()).unwrap();
            nodes.push(Node::File { length: durable.len(), durable, changes: Vec::new() });
        }
        let Node::Folder { names, durable } = &mut nodes[id] else { unreachable!() };
        let name = entry.file_name().into_string().unwrap();
        names.insert(name.clone(), child);
        durable.insert(name, child);
    }
}

impl State {
    fn folder(&mut self, id: usize) -> io::Result<&mut Names> {
        match &mut self.nodes[id] {
            Node::Folder { names, .. } => Ok(names),
            Node::File { .. } => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn find(&mut self, path: &Path) -> io::Result<usize> {
        let below =
            path.strip_prefix(&self.root).unwrap_or_else(|_| panic!("{} is elsewhere", path.display()));
        let names: Vec<String> =
            below.components().map(|part| part.as_os_str().to_str().unwrap().to_owned()).collect();
        names.iter().try_fold(0, |id, name| {
            self.folder(id)?.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
        })
    }

    /// The folder that a path stands in, and its name there.
    fn place(&mut self, path: &Path) -> io::Result<(usize, String)> {
        let folder = self.find(path.parent().unwrap())?;
        Ok((folder, path.file_name().unwrap().to_str().unwrap().to_owned()))
    }

    fn change(&mut self, change: NameChange) -> io::Result<()> {
        change.apply(self.folder(change.folder())?);
        self.names.push(change);
        Ok(())
    }

    fn write(&mut self, id: usize, change: Change) {
        let Node::File { length, changes, .. } = &mut self.nodes[id] else { unreachable!() };
        *length = match &change {
            Change::Write { at, bytes } => at + bytes.len(),
            Change::Truncate(length) => *length,
        };
        changes.push(change);
    }

    /// Makes a file's content or a folder's names durable.
    fn sync(&mut self, id: usize) {
        match &mut self.nodes[id] {
            Node::File { durable, changes, .. } => changes.drain(..).for_each(|change| change.apply(durable)),
            Node::Folder { names, durable } => {
                durable.clone_from(names);
                self.names.retain(|change| change.folder() != id);
            }
        }
    }

    /// What a failed forcing to disk leaves: the system does not try again.
    fn lose(&mut self, id: usize) {
        if let Node::File { changes, .. } = &mut self.nodes[id] {
            changes.clear();
        }
    }

    fn length(&self, id: usize) -> usize {
        match &self.nodes[id] {
            Node::File { length, .. } => *length,
            Node::Folder { .. } => 0,
        }
    }

    fn write_folder(
        &self,
        path: &Path,
        id: usize,
        folders: &BTreeMap<usize, Names>,
        random: &mut Option<Stream>,
    ) {
        for (name, &child) in &folders[&id] {
            let path = path.join(name);
            match &self.nodes[child] {
                Node::Folder { .. } => {
                    fs::create_dir(&path).unwrap();
                    self.write_folder(&path, child, folders, random);
                }
                Node::File { durable, changes, .. } => {
                    let mut content = durable.clone();
                    if let Some(random) = random {
                        changes.iter().for_each(|change| change.apply_some(&mut content, random));
                    }
                    fs::write(&path, content).unwrap();
                }
            }
        }
    }
}

impl Disk for FaultyDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.operation("create_dir", path)?;
        SystemDisk.create_dir(path)?;
        let (folder, name) = state.place(path)?;
        let node = state.nodes.len();
        state.nodes.push(Node::Folder { names: Names::new(), durable: Names::new() });
        state.change(NameChange::Add { folder, name, node })
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.operation("create", path)?;
        let inner = SystemDisk.create(path)?;
        let id = match state.find(path) {
            Ok(id) => id,
            Err(_) => {
                let (folder, name) = state.place(path)?;
                let node = state.nodes.len();
                state.nodes.push(Node::File { length: 0, durable: Vec::new(), changes: Vec::new() });
                state.change(NameChange::Add { folder, name, node })?;
                node
            }
        };
        if state.length(id) > 0 {
            state.write(id, Change::Truncate(0));
        }
        Ok(Box::new(FaultyFile { disk: self.clone(), path: path.to_path_buf(), id, inner }))
    }

    fn append(&self, path: &Path, length: u64) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.operation("append", path)?;
        let inner = SystemDisk.append(path, length)?;
        let id = state.find(path)?;
        state.write(id, Change::Truncate(length as usize));
        Ok(Box::new(FaultyFile { disk: self.clone(), path: path.to_path_buf(), id, inner }))
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        match self.begin("sync", path) {
            Ok(mut state) => {
                let id = state.find(path)?;
                state.sync(id);
                Ok(())
            }
            Err((mut state, fault)) => {
                let id = state.find(path)?;
                state.lose(id);
                Err(io::Error::from_raw_os_error(fault.errno))
            }
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.operation("rename", from)?;
        SystemDisk.rename(from, to)?;
        let node = state.find(from)?;
        let ((folder, from), (other, to)) = (state.place(from)?, state.place(to)?);
        assert_eq!(folder, other, "a rename into another folder is not modelled");
        state.change(NameChange::Rename { folder, from, to, node })
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.operation("remove_file", path)?;
        SystemDisk.remove_file(path)?;
        let (folder, name) = state.place(path)?;
        state.change(NameChange::Remove { folder, name })
    }

    /// An operation for each name in it.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        for entry in fs::read_dir(path)? {
            let path = entry?.path();
            if path.is_dir() { self.remove_dir_all(&path)? } else { self.remove_file(&path)? }
        }
        let mut state = self.operation("remove_dir", path)?;
        fs::remove_dir(path)?;
        let (folder, name) = state.place(path)?;
        state.change(NameChange::Remove { folder, name })
    }

    /// A test's disk does not mend itself.
    fn pause(&self, _: Duration) {}

    fn free_bytes(&self, _: &Path) -> io::Result<Option<u64>> {
        Ok(Some(1 << 40))
    }
}

#[derive(Debug)]
struct FaultyFile {
    disk: FaultyDisk,
    path: PathBuf,
    id: usize,
    inner: Box<dyn DiskFile>,
}

impl Write for FaultyFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (mut state, done, result) = match self.disk.begin("write", &self.path) {
            Ok(state) => (state, bytes.len(), Ok(bytes.len())),
            Err((state, fault)) => {
                let done = if fault.half { bytes.len() / 2 } else { 0 };
                (state, done, Err(io::Error::from_raw_os_error(fault.errno)))
            }
        };
        self.inner.write_all(&bytes[..done])?;
        let at = state.length(self.id);
        state.write(self.id, Change::Write { at, bytes: bytes[..done].to_vec() });
        result
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl DiskFile for FaultyFile {
    fn truncate(&mut self, length: u64) -> io::Result<()> {
        let mut state = self.disk.operation("truncate", &self.path)?;
        self.inner.truncate(length)?;
        state.write(self.id, Change::Truncate(length as usize));
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        match self.disk.begin("sync", &self.path) {
            Ok(mut state) => {
                state.sync(self.id);
                Ok(())
            }
            Err((mut state, fault)) => {
                state.lose(self.id);
                Err(io::Error::from_raw_os_error(fault.errno))
            }
        }
    }
}
