//! The ledger's marks in the state file, and back.
//!
//! Records are not in it: they are found by reading the log.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use weir_schema::values::{LossReason, LossStage};

use super::epoch::{Amount, Epoch, Tombstone};
use super::ledger::{Alias, Ledger};
use super::record::{CaptureKey, Id, RecordError, SavedKey, id, required};
use super::state::{SavedAggregator, SavedAlias, SavedEpoch, SavedTombstone, State};

const WHAT: &str = "spool state";

/// What the state file says.
#[derive(Debug)]
pub(crate) struct Image {
    pub shipper: Id,
    /// Without entries.
    pub ledger: Ledger,
    /// The last interval that was dropped instead of appended, and the log's next position then.
    pub dropped: Option<Dropped>,
}

/// An interval that has numbers but no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dropped {
    pub key: CaptureKey,
    pub position: u64,
}

/// The state to be saved.
pub(crate) fn save(shipper: Id, ledger: &Ledger, dropped: Option<Dropped>) -> State {
    let Ledger { epochs, aliases, journals, pending: _ } = ledger;
    let tombstones = epochs.iter().flat_map(|epoch| {
        let of = bytes(&epoch.id);
        epoch.tombstones.iter().map(move |tombstone| {
            let Tombstone { from, to, stage, reason, events, bytes, first_ns, last_ns } = *tombstone;
            let (stage, reason) = (stage.code(), reason.code());
            SavedTombstone { epoch: of.clone(), from, to, stage, reason, events, bytes, first_ns, last_ns }
        })
    });
    State {
        shipper: bytes(&shipper),
        journal: Bytes::new(),
        epochs: epochs
            .iter()
            .map(|epoch| {
                let Epoch { id, journal, acked, sent, next, entries: _, tombstones: _ } = epoch;
                let journal = journal.as_ref().map(bytes).unwrap_or_default();
                SavedEpoch { epoch: bytes(id), acked: *acked, sent: *sent, next: *next, journal }
            })
            .collect(),
        tombstones: tombstones.collect(),
        aliases: aliases
            .iter()
            .map(|Alias { from, base, end, to }| {
                let end = if *end == u64::MAX { 0 } else { *end };
                SavedAlias { from: bytes(from), base: *base, to: bytes(to), end }
            })
            .collect(),
        dropped_key: dropped.map(|dropped| SavedKey::from(dropped.key)),
        dropped_position: dropped.map_or(0, |dropped| dropped.position),
        aggregators: journals
            .iter()
            .map(|(name, journal)| SavedAggregator { name: name.clone(), journal: bytes(journal) })
            .collect(),
    }
}

/// Checks a saved state. It has a right checksum, so an error means another program or version. The one journal of a
/// state of version 1 is that of the aggregator `first`.
pub(crate) fn load(state: &State, first: &str) -> Result<Image, RecordError> {
    let State {
        shipper,
        journal: only,
        epochs,
        tombstones,
        aliases,
        dropped_key,
        dropped_position,
        aggregators,
    } = state;
    let mut journals = BTreeMap::new();
    for SavedAggregator { name, journal } in aggregators {
        journals.insert(name.clone(), id(WHAT, "aggregator.journal", journal)?);
    }
    let only = optional("journal", only)?;
    if let Some(only) = only {
        journals.insert(first.to_owned(), only);
    }
    let mut ledger = Ledger {
        epochs: VecDeque::with_capacity(epochs.len()),
        aliases: Vec::with_capacity(aliases.len()),
        journals,
        pending: Amount::default(),
    };
    for SavedEpoch { epoch, acked, sent, next, journal } in epochs {
        if *next == 0 || *acked >= *next {
            return Err(RecordError::Field { what: WHAT, field: "acked", value: *acked });
        }
        let journal = optional("epoch.journal", journal)?.or(only.filter(|_| *sent > 0));
        let new = Epoch::new(id(WHAT, "epoch", epoch)?);
        let epoch = Epoch { acked: *acked, sent: *sent, next: *next, journal, ..new };
        ledger.epochs.push_back(epoch);
    }
    if ledger.epochs.is_empty() {
        return Err(RecordError::Field { what: WHAT, field: "epochs", value: 0 });
    }
    for saved in tombstones {
        let SavedTombstone { epoch, from, to, stage, reason, events, bytes, first_ns, last_ns } =
            saved.clone();
        let field = |field, value| RecordError::Field { what: WHAT, field, value };
        let epoch = id(WHAT, "tombstone.epoch", &epoch)?;
        let stage = LossStage::from_code(stage).ok_or(field("tombstone.stage", u64::from(stage)))?;
        let reason = LossReason::from_code(reason).ok_or(field("tombstone.reason", u64::from(reason)))?;
        let epoch =
            ledger.epochs.iter_mut().find(|other| other.id == epoch).ok_or(field("tombstone.epoch", from))?;
        let after = epoch.tombstones.back().map_or(epoch.acked, |before| before.to);
        if from <= after || from > to || to >= epoch.next {
            return Err(field("tombstone.from", from));
        }
        let tombstone = Tombstone { from, to, stage, reason, events, bytes, first_ns, last_ns };
        epoch.tombstones.push_back(tombstone);
    }
    for SavedAlias { from, base, to, end } in aliases {
        let (from, to) = (id(WHAT, "alias.from", from)?, id(WHAT, "alias.to", to)?);
        let end = if *end == 0 { u64::MAX } else { *end };
        ledger.aliases.push(Alias { from, base: *base, end, to });
    }
    let dropped = dropped_key.as_ref().map(|key| required(WHAT, Some(key))).transpose()?;
    let dropped = dropped.map(|key| Dropped { key, position: *dropped_position });
    Ok(Image { shipper: id(WHAT, "shipper", shipper)?, ledger, dropped })
}

fn optional(field: &'static str, bytes: &Bytes) -> Result<Option<Id>, RecordError> {
    if bytes.is_empty() { Ok(None) } else { id(WHAT, field, bytes).map(Some) }
}

fn bytes(id: &Id) -> Bytes {
    Bytes::copy_from_slice(id)
}
