//! The faulty disk itself: a writer that forgets something is caught, one that forgets nothing is not.

use crate::disk::{EIO, ENOSPC, Fault, FaultyDisk, folder};
use othink::disk::Disk;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

/// What a writer of a file forgets.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Flaw {
    None,
    NoFileSync,
    NoFolderSync,
    RenamesBeforeSync,
    DeletesTheOldFirst,
}

const OLD: &[u8] = b"the old content";
const NEW: &[u8] = b"the content that takes its place";

fn replace(disk: &dyn Disk, dir: &Path, flaw: Flaw) -> io::Result<()> {
    let (target, temporary) = (dir.join("file"), dir.join("file.tmp"));
    let mut file = disk.create(&temporary)?;
    file.write_all(NEW)?;
    if flaw != Flaw::NoFileSync && flaw != Flaw::RenamesBeforeSync {
        file.sync()?;
    }
    if flaw == Flaw::DeletesTheOldFirst {
        disk.remove_file(&target)?;
    }
    disk.rename(&temporary, &target)?;
    if flaw == Flaw::RenamesBeforeSync {
        file.sync()?;
    }
    if flaw != Flaw::NoFolderSync { disk.sync(dir) } else { Ok(()) }
}

/// In how many ways a power cut leaves neither the old nor the new content, or takes back what was said to be done.
fn losses(flaw: Flaw) -> usize {
    let mut losses = 0;
    for at in 0..20 {
        for seed in [None].into_iter().chain((0..20).map(Some)) {
            let root = folder();
            fs::write(root.path().join("file"), OLD).unwrap();
            let disk = FaultyDisk::with(root.path(), Fault::for_good(at, EIO));
            let done = replace(&disk, root.path(), flaw);
            assert_eq!(done.is_ok(), disk.failed().is_empty());
            disk.cut_power(seed);
            let found = fs::read(root.path().join("file")).unwrap_or_default();
            losses += usize::from(found != NEW && (found != OLD || done.is_ok()));
        }
    }
    losses
}

#[test]
fn a_writer_that_forgets_nothing_loses_nothing() {
    assert_eq!(losses(Flaw::None), 0);
}

#[test]
fn every_forgotten_step_is_seen() {
    for flaw in [Flaw::NoFileSync, Flaw::NoFolderSync, Flaw::RenamesBeforeSync, Flaw::DeletesTheOldFirst] {
        assert!(losses(flaw) > 0, "{flaw:?}");
    }
}

#[test]
fn a_fault_hits_the_operation_that_it_names() {
    let root = folder();
    let disk = FaultyDisk::with(root.path(), Fault::once(1, ENOSPC));
    let path = root.path().join("file");
    let mut file = disk.create(&path).unwrap();
    let error = file.write_all(b"12345678").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert_eq!(fs::read(&path).unwrap(), b"1234", "half of a write is done");
    file.truncate(2).unwrap();
    file.write_all(b"ab").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"12ab");
    assert_eq!(disk.failed(), ["1: write file"]);
    assert_eq!(disk.operations(), 4);
    let gone = FaultyDisk::with(root.path(), Fault::for_good(0, EIO));
    assert!(gone.remove_file(&path).is_err() && gone.sync(&path).is_err() && gone.create(&path).is_err());
    assert!(path.exists());
}

#[test]
fn what_could_not_be_forced_to_disk_is_not_there_later() {
    let root = folder();
    let path = root.path().join("file");
    let disk = FaultyDisk::with(root.path(), Fault::once(2, EIO));
    let mut file = disk.create(&path).unwrap();
    file.write_all(b"lost").unwrap();
    file.sync().unwrap_err();
    file.write_all(b"kept").unwrap();
    // It says that all is well.
    file.sync().unwrap();
    disk.sync(root.path()).unwrap();
    disk.cut_power(None);
    assert_eq!(fs::read(&path).unwrap(), b"\0\0\0\0kept");
}

#[test]
fn folders_and_what_was_there_before_survive_as_they_were_forced_to_disk() {
    let root = folder();
    let root = root.path();
    fs::create_dir(root.join("old")).unwrap();
    fs::write(root.join("old/a"), "a").unwrap();
    let disk = FaultyDisk::new(root);
    disk.create_dir(&root.join("new")).unwrap();
    let mut file = disk.create(&root.join("new/b")).unwrap();
    file.write_all(b"b").unwrap();
    file.sync().unwrap();
    disk.sync(&root.join("new")).unwrap();
    disk.remove_dir_all(&root.join("old")).unwrap();
    assert!(!root.join("old").exists() && root.join("new/b").exists());
    disk.cut_power(None);
    assert!(root.join("old/a").exists() && !root.join("new").exists(), "the root was not forced to disk");
}
