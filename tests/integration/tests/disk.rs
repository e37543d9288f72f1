//! Damage and full disks under running programs: found, reported with file and offset, the rest delivered, and every
//! event that is missing is in `kind=loss`.
#![expect(clippy::unwrap_used, reason = "tests panic where they fail")]

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use weir_integration_tests::duckdb::{DuckDb, Row, number};
use weir_integration_tests::process::{free_address, http_get, metric_sum, wait_for};
use weir_integration_tests::scale::scale;
use weir_integration_tests::system::{Aggregator, Generator};
use weir_integration_tests::tmpfs::SmallDisk;

/// Events in one interval: what one damaged record of the spool holds.
const INTERVAL: u64 = 500;

struct Setup {
    aggregator: Aggregator,
    generator: Generator,
}

fn setup(home: &Path) -> Setup {
    let aggregator = Aggregator {
        program: env!("CARGO_BIN_EXE_sut_aggregator").into(),
        home: home.to_owned(),
        address: free_address(),
        admin: free_address(),
        set: Vec::new(),
    };
    let generator = Generator {
        program: env!("CARGO_BIN_EXE_weir-gen").into(),
        home: home.join("generator"),
        aggregator: aggregator.address,
        admin: Some(free_address()),
        index: 0,
        events: scale().disk_events,
        interval_events: INTERVAL,
        rate: 0,
        stay: false,
        set: vec!["spool.segment_bytes=64KiB".to_owned()],
        realistic: false,
    };
    Setup { aggregator, generator }
}

impl Setup {
    /// Fills the spool while no aggregator is there, and kills the generator.
    fn fill_spool(&self) {
        let mut process = Generator { stay: true, ..self.generator.clone() }.start(None);
        let intervals = self.generator.events / INTERVAL;
        wait_for(
            "the spool to be full",
            || process.log_tail(),
            || self.generator.intervals_released() == intervals,
        );
        process.kill_9();
    }

    /// Delivers all, and ends both.
    fn deliver(&self) {
        let mut server = self.aggregator.start(None);
        self.generator.start(None).wait_success();
        server.terminate();
        server.wait_success();
    }

    /// Rows of flows, none twice, and the loss rows.
    fn result(&self, duckdb: &DuckDb) -> (i128, Vec<Row>) {
        let flows = &duckdb.query(&format!(
            "SELECT count(*) AS rows, count(DISTINCT src_bytes) AS ids FROM {}",
            self.aggregator.table("flow")
        ))[0];
        assert_eq!(number(&flows["rows"]), number(&flows["ids"]), "doubled");
        let losses = if self.aggregator.has("loss") {
            let table = self.aggregator.table("loss");
            duckdb.query(&format!("SELECT stage, reason, count FROM {table} ORDER BY first_time"))
        } else {
            Vec::new()
        };
        (number(&flows["rows"]), losses)
    }

    fn generator_log(&self) -> String {
        fs::read_to_string(self.generator.home.join("generator.log")).unwrap()
    }

    fn aggregator_log(&self) -> String {
        fs::read_to_string(self.aggregator.home.join("aggregator.log")).unwrap()
    }
}

/// The segments of a log, oldest first.
fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    paths.sort();
    paths
}

fn flip(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}

/// That a line of a log names the file and an offset in it.
fn assert_reported(log: &str, path: &Path) {
    let name = path.file_name().unwrap().to_str().unwrap();
    let found = log.lines().any(|line| line.contains(name) && line.contains("offset"));
    assert!(found, "no line names {name} and an offset:\n{log}");
}

fn assert_one_loss(losses: &[Row], stage: &str, reason: &str) {
    assert_eq!(losses.len(), 1, "{losses:?}");
    assert_eq!(
        (losses[0]["stage"].as_str(), losses[0]["reason"].as_str()),
        (Some(stage), Some(reason)),
        "{losses:?}"
    );
}

#[test]
fn a_flipped_byte_in_the_spool_costs_one_interval_and_is_declared() {
    let Some(duckdb) = DuckDb::find() else { return };
    let dir = tempfile::tempdir().unwrap();
    let setup = setup(dir.path());
    setup.fill_spool();
    let paths = segments(&setup.generator.spool());
    assert!(paths.len() > 3, "{paths:?}");
    let victim = &paths[1];
    flip(victim, fs::metadata(victim).unwrap().len() / 2);
    setup.deliver();

    let (delivered, losses) = setup.result(&duckdb);
    println!(
        "SOAK flipped byte in the spool: {} sent, {delivered} delivered, {losses:?}",
        setup.generator.events
    );
    assert_eq!(delivered, i128::from(setup.generator.events - INTERVAL));
    assert_one_loss(&losses, "spool", "corrupt");
    assert_reported(&setup.generator_log(), victim);
}

#[test]
fn a_torn_tail_of_the_spool_is_declared_and_its_numbers_are_not_used_again() {
    let Some(duckdb) = DuckDb::find() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut setup = setup(dir.path());
    setup.fill_spool();
    let paths = segments(&setup.generator.spool());
    let victim = paths.last().unwrap();
    let length = fs::metadata(victim).unwrap().len();
    OpenOptions::new().write(true).open(victim).unwrap().set_len(length - 10).unwrap();
    // A torn append would be made again from the kernel's map. That this one was not torn, but lost after it was
    // synced, shows in the number of the interval that comes next.
    setup.generator.events += INTERVAL;
    setup.deliver();

    let (delivered, losses) = setup.result(&duckdb);
    println!(
        "SOAK torn tail of the spool: {} sent, {delivered} delivered, {losses:?}",
        setup.generator.events
    );
    assert_eq!(delivered, i128::from(setup.generator.events - INTERVAL));
    assert_one_loss(&losses, "spool", "corrupt");
    assert_reported(&setup.generator_log(), victim);
}

#[test]
fn a_flipped_byte_in_the_journal_costs_one_record_and_is_declared() {
    let Some(duckdb) = DuckDb::find() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut setup = setup(dir.path());
    // Nothing is cut before the damage is done, so Parquet has to read all of the journal after it.
    let calm = ["parquet.roll_age=1h", "parquet.roll_bytes=1GiB"].map(str::to_owned);
    setup.aggregator.set = calm.to_vec();
    let mut server = setup.aggregator.start(None);
    setup.generator.start(None).wait_success();
    server.kill_9();
    let paths = segments(&setup.aggregator.home.join("journal"));
    assert!(paths.len() > 2, "{paths:?}");
    let victim = &paths[1];
    flip(victim, fs::metadata(victim).unwrap().len() / 2);
    setup.aggregator.set.clear();
    let mut server = setup.aggregator.start(None);
    wait_for("the loss row", || server.log_tail(), || setup.aggregator.has("loss"));
    server.terminate();
    server.wait_success();

    let (delivered, losses) = setup.result(&duckdb);
    let missing = i128::from(setup.generator.events) - delivered;
    println!(
        "SOAK flipped byte in the journal: {missing} of {} events missing, {losses:?}",
        setup.generator.events
    );
    assert!(missing > 0, "the damaged record was read");
    assert_one_loss(&losses, "journal", "corrupt");
    assert_reported(&setup.aggregator_log(), victim);
    // One group commit, not the rest of the segment.
    let group_rows_max = 16_384 + i128::from(INTERVAL);
    assert!(missing <= group_rows_max, "{missing} events are missing");
}

#[test]
fn a_torn_tail_of_the_journal_is_declared_by_the_shipper() {
    let Some(duckdb) = DuckDb::find() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut setup = setup(dir.path());
    // One segment, so that its end is a record and not the checkpoint of a new one.
    let calm = ["parquet.roll_age=1h", "parquet.roll_bytes=1GiB", "journal.segment_bytes=64MiB"];
    setup.aggregator.set = calm.map(str::to_owned).to_vec();
    let mut server = setup.aggregator.start(None);
    setup.generator.start(None).wait_success();
    server.kill_9();
    let paths = segments(&setup.aggregator.home.join("journal"));
    let victim = paths.last().unwrap();
    let length = fs::metadata(victim).unwrap().len();
    OpenOptions::new().write(true).open(victim).unwrap().set_len(length - 10).unwrap();
    // It has nothing left to send, but it says what the journal no longer has.
    let mut server = setup.aggregator.start(None);
    let more = Generator { events: setup.generator.events + INTERVAL, ..setup.generator.clone() };
    more.start(None).wait_success();
    server.terminate();
    server.wait_success();

    let (delivered, losses) = setup.result(&duckdb);
    println!("SOAK torn tail of the journal: {} sent, {delivered} delivered, {losses:?}", more.events);
    // Either the shipper still had what was cut, and sent it again, or it declared the loss.
    if delivered == i128::from(more.events) {
        assert!(losses.is_empty(), "{losses:?}");
    } else {
        assert_one_loss(&losses, "journal", "corrupt");
    }
    assert_reported(&setup.aggregator_log(), victim);
}

#[test]
fn a_journal_that_lost_what_parquet_has_goes_on_after_it() {
    let Some(duckdb) = DuckDb::find() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut setup = setup(dir.path());
    setup.aggregator.set = vec!["journal.segment_bytes=64MiB".to_owned()];
    let mut server = setup.aggregator.start(None);
    setup.generator.start(None).wait_success();
    server.terminate();
    server.wait_success();
    let paths = segments(&setup.aggregator.home.join("journal"));
    let victim = paths.last().unwrap();
    let length = fs::metadata(victim).unwrap().len();
    OpenOptions::new().write(true).open(victim).unwrap().set_len(length - 10).unwrap();
    let mut server = setup.aggregator.start(None);
    let more = Generator { events: setup.generator.events + INTERVAL, ..setup.generator.clone() };
    more.start(None).wait_success();
    server.terminate();
    server.wait_success();

    // What was cut off had been published, so the loss row that the shipper's sequence asks for has no count.
    let (delivered, losses) = setup.result(&duckdb);
    println!("SOAK journal behind Parquet: {} sent, {delivered} delivered, {losses:?}", more.events);
    assert_eq!(delivered, i128::from(more.events));
    assert_one_loss(&losses, "journal", "corrupt");
    assert_reported(&setup.aggregator_log(), victim);
}

#[test]
fn a_full_disk_under_the_note_of_reported_damage_puts_the_note_off() {
    let Some(duckdb) = DuckDb::find() else { return };
    let Some(disk) = SmallDisk::mount(64 << 20) else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut setup = setup(dir.path());
    setup.generator.events = 20_000;
    let journal = disk.path().join("journal");
    let here = format!("journal.dir={}", journal.display());
    let calm = ["parquet.roll_age=1h", "parquet.roll_bytes=1GiB"].map(str::to_owned);
    setup.aggregator.set = [&[here.clone()][..], &calm].concat();
    let mut server = setup.aggregator.start(None);
    setup.generator.start(None).wait_success();
    server.kill_9();
    let paths = segments(&journal);
    assert!(paths.len() > 2, "{paths:?}");
    flip(&paths[1], fs::metadata(&paths[1]).unwrap().len() / 2);

    // The segments that are there have room; the note would be a new file, which has none.
    disk.allow_more_files(0);
    setup.aggregator.set = vec![here];
    let mut server = setup.aggregator.start(None);
    wait_for("the loss row", || server.log_tail(), || setup.aggregator.has("loss"));
    let note = journal.join("damage-reported");
    let home = setup.aggregator.home.clone();
    let log = || fs::read_to_string(home.join("aggregator.log")).unwrap();
    wait_for("a word about the note", log, || log().contains("no room to remember reported damage"));
    assert!(!note.exists());

    // With room, it is written with the next record.
    disk.allow_more_files(16);
    let sent = setup.generator.events;
    setup.generator.events += INTERVAL;
    setup.generator.start(None).wait_success();
    wait_for("the note", log, || note.exists());
    let noted = fs::read_to_string(&note).unwrap();
    assert_eq!(noted.lines().count(), 1, "{noted}");
    assert!(server.is_running(), "{}", server.log_tail());
    server.kill_9();
    let mut server = setup.aggregator.start(None);
    wait_for("a start", log, || {
        http_get(setup.aggregator.admin, "/readyz").is_ok_and(|(code, _)| code == 200)
    });
    server.terminate();
    server.wait_success();

    let (delivered, losses) = setup.result(&duckdb);
    let missing = i128::from(sent + INTERVAL) - delivered;
    println!(
        "SOAK full disk under the note of damage: {missing} of {} events missing, {losses:?}",
        sent + INTERVAL
    );
    assert!(missing > 0, "the damaged record was read");
    assert_one_loss(&losses, "journal", "corrupt");
}

#[test]
fn a_full_disk_of_the_journal_is_a_pause() {
    let Some(duckdb) = DuckDb::find() else { return };
    let Some(disk) = SmallDisk::mount(2 << 20) else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut setup = setup(dir.path());
    setup.aggregator.set = vec![
        format!("journal.dir={}", disk.path().join("journal").display()),
        "parquet.roll_age=1s".to_owned(),
    ];
    let mut server = setup.aggregator.start(None);
    let mut shipper = setup.generator.start(None);
    let mut paused = false;
    let admin = setup.aggregator.admin;
    wait_for(
        "everything to be acknowledged",
        || format!("{}\n{}", shipper.log_tail(), server.log_tail()),
        || {
            let metrics = http_get(admin, "/metrics").map(|(_, text)| text).unwrap_or_default();
            paused |= metric_sum(&metrics, "weir_aggregator_journal_paused_disk_full", "") == Some(1.0);
            shipper_ended(&setup.generator)
        },
    );
    shipper.wait_success();
    server.terminate();
    server.wait_success();

    let (delivered, losses) = setup.result(&duckdb);
    println!(
        "SOAK full disk of the journal: {} sent, {delivered} delivered, paused: {paused}",
        setup.generator.events
    );
    assert_eq!((delivered, losses.len()), (i128::from(setup.generator.events), 0), "{losses:?}");
    assert!(paused, "2 MiB were enough for the journal");
    let log = setup.aggregator_log();
    let reported =
        log.lines().any(|line| line.contains(".log at offset") && line.contains("No space left on device"));
    assert!(reported, "no line names the file, the offset and the full disk:\n{log}");
}

/// A generator that ended no longer answers.
fn shipper_ended(generator: &Generator) -> bool {
    generator.intervals_released() == generator.events / INTERVAL
        && http_get(generator.admin.unwrap(), "/metrics").is_err()
}
