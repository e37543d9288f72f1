//! Damage and hostile content: a clear error with the file, and the place in it where there is one.

use super::*;

/// A folder with two published cuts, and the paths of its entries.
fn two_cuts() -> (TempDir, std::path::PathBuf) {
    let dir = TempDir::new().unwrap();
    let mut sink = open(dir.path());
    for position in 1..=2 {
        sink.write(&small().record(position), Instant::now()).unwrap();
        sink.cut(Reason::Request, NOW_US).unwrap();
    }
    let folder = dir.path().join("_weir/manifest").join(JOURNAL_HEX);
    (dir, folder)
}

#[track_caller]
fn assert_refused(dir: &TempDir, entry: &Path, offset: bool, reason: &str) {
    let report = verify(dir.path()).unwrap();
    let problem = &report.journals[0].problems[0];
    assert_eq!((&*problem.path, problem.offset.is_some()), (entry, offset), "{problem:?}");
    assert!(problem.reason.contains(reason), "{problem:?}");
    let error = ParquetSink::open(config(dir.path()), JOURNAL).unwrap_err();
    assert_eq!(error.disposition(), Disposition::Fatal);
    assert!(error.to_string().contains(entry.to_str().unwrap()), "{error}");
}

#[test]
fn a_damaged_entry_is_named_with_its_offset() {
    let (dir, folder) = two_cuts();
    let entry = folder.join(format!("{:020}.json", 1));
    let bytes = fs::read(&entry).unwrap();
    fs::write(&entry, &bytes[..bytes.len() / 2]).unwrap();
    assert_refused(&dir, &entry, true, "EOF");
    fs::write(&entry, b"").unwrap();
    assert_refused(&dir, &entry, true, "EOF");
    let mut nested = b"[".repeat(1 << 20);
    nested.extend_from_slice(&bytes);
    fs::write(&entry, nested).unwrap();
    assert_refused(&dir, &entry, true, "is not an entry");
}

#[test]
fn a_changed_entry_breaks_the_chain() {
    let (dir, folder) = two_cuts();
    let (first, second) = (folder.join(format!("{:020}.json", 1)), folder.join(format!("{:020}.json", 2)));
    let text = fs::read_to_string(&first).unwrap();
    fs::write(&first, text.replace("\"reason\":\"request\"", "\"reason\":\"age\"")).unwrap();
    assert_refused(&dir, &second, false, "as the hash of the entry before");
    fs::remove_file(&first).unwrap();
    assert_refused(&dir, &first, false, "is missing");
}

#[test]
fn entries_can_not_name_files_outside() {
    for path in [
        "../../etc/passwd.parquet",
        "/etc/x.parquet",
        "kind=flow/cluster=a/date=2025-06-01/hour=12/../x.parquet",
    ] {
        let (dir, folder) = two_cuts();
        let entry = folder.join(format!("{:020}.json", 2));
        let mut value: serde_json::Value = serde_json::from_slice(&fs::read(&entry).unwrap()).unwrap();
        value["added"][0]["path"] = path.into();
        fs::write(&entry, value.to_string()).unwrap();
        assert_refused(&dir, &entry, false, "is not a file of a partition");
    }
}

#[test]
fn an_entry_that_is_too_large_is_not_read() {
    let (dir, folder) = two_cuts();
    let entry = folder.join(format!("{:020}.json", 2));
    let file = fs::OpenOptions::new().write(true).open(&entry).unwrap();
    file.set_len(manifest::ENTRY_BYTES_MAX + 1).unwrap();
    assert_refused(&dir, &entry, true, "is larger than");
}

#[test]
fn strangers_in_the_manifest_are_refused() {
    let (dir, folder) = two_cuts();
    let stranger = folder.join("notes.txt");
    fs::write(&stranger, "").unwrap();
    assert_refused(&dir, &stranger, false, "is not named as an entry");
}

#[test]
fn a_flipped_byte_a_missing_file_and_a_stray_one_are_found() {
    let (dir, _) = two_cuts();
    let files = live_files(dir.path()).unwrap();
    let flipped = dir.path().join(&files[0]);
    let mut bytes = fs::read(&flipped).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&flipped, bytes).unwrap();
    let missing = dir.path().join(&files[1]);
    fs::remove_file(&missing).unwrap();
    let stray = dir.path().join("kind=flow/stray.parquet");
    fs::write(&stray, "").unwrap();

    let report = verify(dir.path()).unwrap();
    let problems = &report.journals[0].problems;
    assert!(
        problems.len() == 2 && problems[0].path == flipped && problems[1].path == missing,
        "{problems:?}"
    );
    assert!(
        problems[0].reason.contains("SHA-256") && problems[1].reason.contains("is missing"),
        "{problems:?}"
    );
    assert_eq!(report.unlisted, [stray]);
    let (_sink, report) = ParquetSink::open(config(dir.path()), JOURNAL).unwrap();
    assert_eq!(report.damaged, [(missing, "is missing".to_owned())]);
}

#[test]
fn a_damaged_intent_needs_a_person() {
    let (dir, _) = two_cuts();
    let intent = dir.path().join("_weir/intent").join(format!("{JOURNAL_HEX}.json"));
    for content in ["", "{}", "not json", r#"{"format":1,"temporary":[],"entry_sha256":"","entry":"{}"}"#] {
        fs::write(&intent, content).unwrap();
        let error = ParquetSink::open(config(dir.path()), JOURNAL).unwrap_err();
        assert!(matches!(&error, SinkError::Intent { path, .. } if *path == intent), "{error}");
        assert_eq!(error.disposition(), Disposition::Fatal);
    }
}
