//! Text columns from ids: texts are interned once per table entry, rows carry ids, and each column gets a dictionary of
//! just the texts that it uses.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{DictionaryArray, StringBuilder, UInt32Array};
use arrow::datatypes::UInt32Type;
use arrow::error::ArrowError;
use foldhash::fast::RandomState;

/// Ids of the texts of one group.
pub(super) struct Interner<'a> {
    ids: HashMap<Cow<'a, str>, u32, RandomState>,
    texts: Vec<Cow<'a, str>>,
    /// Scratch of `column`: the place of a text in the dictionary being made.
    places: Vec<u32>,
}

/// The id of null, which is also that of the empty text.
pub(super) const NULL: u32 = 0;

impl<'a> Interner<'a> {
    pub(super) fn new() -> Self {
        let empty = Cow::Borrowed("");
        let ids = HashMap::from_iter([(empty.clone(), NULL)]);
        Self { ids, texts: vec![empty], places: Vec::new() }
    }

    pub(super) fn id(&mut self, text: impl Into<Cow<'a, str>>) -> u32 {
        let text = text.into();
        if let Some(id) = self.ids.get(&text) {
            return *id;
        }
        // A group has fewer texts than bytes, and those are bounded far below 2^32.
        let id = u32::try_from(self.texts.len()).unwrap_or(NULL);
        self.texts.push(text.clone());
        self.ids.insert(text, id);
        id
    }

    pub(super) fn id_or_null(&mut self, text: Option<impl Into<Cow<'a, str>>>) -> u32 {
        text.map_or(NULL, |text| self.id(text))
    }

    /// Ids by code for a closed set; code 0 is null.
    pub(super) fn codes(&mut self, text_of: impl Fn(u32) -> Option<&'static str>) -> Codes {
        let mut codes = [NULL; CODES];
        for (code, id) in codes.iter_mut().enumerate() {
            *id = self.id_or_null(u32::try_from(code).ok().and_then(&text_of));
        }
        Codes(codes)
    }

    /// A column whose `NULL` ids are null.
    pub(super) fn nullable(&mut self, ids: &[u32]) -> Result<DictionaryArray<UInt32Type>, ArrowError> {
        self.column(ids, true)
    }

    /// A column without nulls; the id `NULL` is the empty text.
    pub(super) fn required(&mut self, ids: &[u32]) -> Result<DictionaryArray<UInt32Type>, ArrowError> {
        self.column(ids, false)
    }

    fn column(&mut self, ids: &[u32], null: bool) -> Result<DictionaryArray<UInt32Type>, ArrowError> {
        if null && ids.iter().all(|id| *id == NULL) {
            // Many columns are filled on few hosts only.
            let none = Arc::new(StringBuilder::new().finish());
            return DictionaryArray::try_new(UInt32Array::new_null(ids.len()), none);
        }
        self.places.resize(self.texts.len(), UNPLACED);
        let mut used = Vec::new();
        let mut place = |id: u32| {
            let place = &mut self.places[id as usize];
            if *place == UNPLACED {
                *place = u32::try_from(used.len()).unwrap_or(UNPLACED);
                used.push(id);
            }
            *place
        };
        let keys: UInt32Array = if null && ids.contains(&NULL) {
            ids.iter().map(|id| (*id != NULL).then(|| place(*id))).collect()
        } else {
            UInt32Array::from_iter_values(ids.iter().map(|id| place(*id)))
        };
        let bytes = used.iter().map(|id| self.texts[*id as usize].len()).sum();
        let mut values = StringBuilder::with_capacity(used.len(), bytes);
        for id in used {
            values.append_value(&self.texts[id as usize]);
            self.places[id as usize] = UNPLACED;
        }
        DictionaryArray::try_new(keys, Arc::new(values.finish()))
    }
}

/// Ids of a closed set's texts by code.
pub(super) struct Codes([u32; CODES]);

impl Codes {
    /// The id of a checked code.
    pub(super) fn id(&self, code: u32) -> u32 {
        self.0.get(code as usize).copied().unwrap_or(NULL)
    }
}

/// More than any closed set of the catalogue has.
const CODES: usize = 32;
const UNPLACED: u32 = u32::MAX;
