//! Packets per second of a replay: file format, parser and flow table, then the encoding of the records, on one thread.
//!
//! `cargo bench -p weir-shipper --bench replay -- [packets]`. The capture is made in memory: TCP with payload cut off by
//! the snap length, between so many pairs, in microseconds 1 apart.

use std::io::Write;
use std::time::Instant;

use weir_shipper::batch;
use weir_shipper::replay::{Replay, TableOptions};

const S: i64 = 1_000_000_000;
const OPTIONS: TableOptions =
    TableOptions { interval_ns: 10 * S, idle_ns: 120 * S, tcp_idle_ns: 3600 * S, entries: 131_072 };
const BODY_BYTES: usize = 1 << 20;

fn main() -> anyhow::Result<()> {
    let packets = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(2_000_000);
    println!(
        "{:>10} {:>10} {:>8} {:>12} {:>10} {:>12}",
        "packets", "pairs", "file", "packets/s", "ns each", "records"
    );
    for pairs in [100, 10_000, 100_000] {
        let file = capture(packets, pairs);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&file)?;
        for (name, bytes) in
            [("plain", file.clone()), ("gzip", gzip.finish()?), ("zstd", zstd::bulk::compress(&file, 1)?)]
        {
            let began = Instant::now();
            let (records, report) = Replay::of_bytes(bytes, OPTIONS)?;
            let batches = batch::encode(&records, &[], BODY_BYTES)?;
            let seconds = began.elapsed().as_secs_f64();
            assert_eq!(report.totals.packets, u64::from(packets));
            assert!(!batches.is_empty());
            let rate = f64::from(packets) / seconds;
            println!(
                "{packets:>10} {pairs:>10} {name:>8} {rate:>12.0} {:>10.0} {:>12}",
                1e9 / rate,
                records.len()
            );
        }
    }
    Ok(())
}

fn capture(packets: u32, pairs: u32) -> Vec<u8> {
    let mut file = Vec::with_capacity(packets as usize * 80);
    for word in [0xa1b2_c3d4u32, 4 << 16 | 2, 0, 0, 64, 1] {
        file.extend(word.to_le_bytes());
    }
    for packet in 0..packets {
        let (pair, turn) = (packet % pairs, packet / pairs);
        let client = [10, (pair >> 16) as u8, (pair >> 8) as u8, pair as u8];
        let server = [192, 0, 2, (pair % 200) as u8];
        let asks = turn % 2 == 0;
        let (src, dst, ports) =
            if asks { (client, server, (40_000, 443)) } else { (server, client, (443, 40_000)) };
        for word in [1_700_000_000 + packet / 1_000_000, packet % 1_000_000, 54, 1254u32] {
            file.extend(word.to_le_bytes());
        }
        file.extend([2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]);
        file.extend([0x45, 0, 0x04, 0xd8, 0, 0, 0x40, 0, 64, 6, 0, 0]);
        file.extend(src);
        file.extend(dst);
        file.extend(u16::to_be_bytes(ports.0));
        file.extend(u16::to_be_bytes(ports.1));
        let (mine, others) = (turn / 2 * 1200, turn.div_ceil(2) * 1200);
        file.extend(mine.to_be_bytes());
        file.extend(others.to_be_bytes());
        file.extend([0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    }
    file
}
