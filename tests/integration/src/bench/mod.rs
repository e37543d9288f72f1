//! What `make bench` measures of whole processes: CPU seconds, bytes and memory, never wall-clock limits.
//!
//! The program `weir-bench` runs these and prints them; `tests/bench.rs` runs it small. Micro-benchmarks of one crate are
//! in that crate's `benches/`.

pub mod capture;
pub mod machine;
pub mod pipeline;
pub mod recovery;

use std::path::PathBuf;

use serde_json::{Map, Value};

/// What to run, and how much of it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Folder of the programs under measurement.
    pub programs: PathBuf,
    /// Where their files go; on a real disk.
    pub home: PathBuf,
    /// Flows of the pipeline's run.
    pub flows: u64,
    /// Journal to recover, bytes.
    pub backlog_bytes: u64,
    /// Packets that are sent past the kernel programs.
    pub packets: u64,
    /// Flows that a shipper has in one interval.
    pub captured_flows: u64,
}

impl Plan {
    /// The program of this name.
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// An empty folder for one run.
    pub fn folder(&self, name: &str) -> PathBuf {
        let folder = self.home.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }
}

/// One figure.
#[derive(Clone, Debug)]
pub struct Figure {
    /// Its name in the JSON.
    pub name: &'static str,
    /// Its value.
    pub value: f64,
    /// In which unit, for people.
    pub unit: &'static str,
    /// What it is to come to, where there is a goal.
    pub goal: Option<f64>,
}

/// The figures of one run, in the order of printing.
#[derive(Clone, Debug, Default)]
pub struct Figures(Vec<Figure>);

impl Figures {
    /// Adds one.
    pub fn add(&mut self, name: &'static str, value: f64, unit: &'static str) -> &mut Self {
        self.0.push(Figure { name, value, unit, goal: None });
        self
    }

    /// Adds one that has a goal.
    pub fn add_goal(&mut self, name: &'static str, value: f64, unit: &'static str, goal: f64) -> &mut Self {
        self.0.push(Figure { name, value, unit, goal: Some(goal) });
        self
    }

    /// For people.
    pub fn print(&self, title: &str) {
        println!("{title}");
        for Figure { name, value, unit, goal } in &self.0 {
            let digits = if value.abs() >= 1000.0 { 0 } else { 2 };
            let goal = goal.map(|goal| format!("   (goal {goal})")).unwrap_or_default();
            println!("  {name:<44} {value:>14.digits$} {unit}{goal}");
        }
    }

    /// For machines: name to value.
    pub fn json(&self) -> Value {
        let pairs = self.0.iter().map(|figure| (figure.name.to_owned(), Value::from(figure.value)));
        Value::Object(pairs.collect::<Map<_, _>>())
    }
}
