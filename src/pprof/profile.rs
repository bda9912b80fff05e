//! Builds a profile.proto message that is complete in itself: functions, lines and mappings included.
//!
//! In: stacks of addresses, leaf first, with values. Out: the gzipped message. Never: two entries for one thing; every
//! identifier that a sample names exists.
//!
//! Format: `proto/profile.proto` of github.com/google/pprof.

use std::collections::HashMap;
use std::io::Write;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use pprof::protos::{Label, Line, Location, Mapping, Message, Profile, Sample, ValueType};

use super::Service;
use super::elf::ElfFile;
use super::paths::Paths;
use super::symbols::{Detail, Function, Symbolizer};
use crate::time::{Timestamp, wall_now};

/// A kind of value and its unit, such as `("cpu", "nanoseconds")`.
pub(super) type Kind = (&'static str, &'static str);

/// What the values of a profile mean.
#[derive(Clone, Copy, Debug)]
pub(super) struct Meaning {
    /// The kinds, in the order of each sample's values.
    pub samples: &'static [Kind],
    /// What is counted between two samples.
    pub period_type: Kind,
    /// How much of it, in that unit.
    pub period: i64,
    /// The kind that tools show first.
    pub default_sample: &'static str,
}

/// Which frames at the leaf belong to the machinery of the measurement and are left out.
pub(super) type IsMachinery = fn(&Function) -> bool;

/// What `go tool pprof -tags` shows of a sample, by key.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tags<'a> {
    /// Words.
    pub texts: &'a [(&'a str, &'a str)],
    /// Numbers without a unit.
    pub numbers: &'a [(&'a str, i64)],
}

/// Collects samples into one message.
#[derive(Debug)]
pub(super) struct ProfileBuilder {
    profile: Profile,
    strings: HashMap<String, i64>,
    functions: HashMap<(String, String), u64>,
    locations: HashMap<(u64, usize), u64>,
    /// Locations without an address, by function and line.
    named: HashMap<(u64, u32), u64>,
    symbols: Symbolizer,
    paths: Paths,
    /// Inlined functions, which get their paths when all are known: place, name, file.
    inlined: Vec<(usize, String, String)>,
}

impl ProfileBuilder {
    /// A profile without samples.
    pub(super) fn new(service: &Service, meaning: &Meaning, detail: Detail) -> Self {
        let mut builder = Self {
            profile: Profile::default(),
            strings: HashMap::new(),
            functions: HashMap::new(),
            locations: HashMap::new(),
            named: HashMap::new(),
            symbols: Symbolizer::new(detail),
            paths: Paths::default(),
            inlined: Vec::new(),
        };
        // The format wants the empty string first.
        builder.string("");
        builder.profile.sample_type =
            meaning.samples.iter().map(|kind| builder.kind(*kind)).collect();
        builder.profile.period_type = Some(builder.kind(meaning.period_type));
        builder.profile.period = meaning.period;
        // Empty: none, as in Go's profiles of one kind.
        builder.profile.default_sample_type = builder.string(meaning.default_sample);
        builder.comment(&format!("service: {}", service.name));
        if !service.version.is_empty() {
            builder.comment(&format!("version: {}", service.version));
        }
        builder.add_mappings();
        builder.covers(wall_now(), Duration::ZERO);
        builder
    }

    /// When the profile was taken, and over how long.
    pub(super) fn covers(&mut self, start: Timestamp, duration: Duration) {
        self.profile.time_nanos = start.as_millis().saturating_mul(1_000_000);
        self.profile.duration_nanos = i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
    }

    /// A sentence that tools show in the header.
    pub(super) fn comment(&mut self, text: &str) {
        let text = self.string(text);
        self.profile.comment.push(text);
    }

    /// Adds a sample: addresses inside the calls, leaf first; values in the order of the kinds.
    ///
    /// Frames that `is_machinery` knows are left out from the leaf on, up to the first other one; a stack of nothing
    /// else stays whole.
    pub(super) fn sample(
        &mut self,
        stack: &[u64],
        values: Vec<i64>,
        is_machinery: IsMachinery,
    ) -> &mut Sample {
        let mut location_id = Vec::with_capacity(stack.len());
        for &address in stack {
            let functions = self.symbols.resolve(address);
            let skipped = if location_id.is_empty() {
                functions.iter().take_while(|function| is_machinery(function)).count()
            } else {
                0
            };
            if skipped == 0 || skipped < functions.len() {
                location_id.push(self.location(address, skipped, &functions));
            }
        }
        if location_id.is_empty() {
            for &address in stack {
                let functions = self.symbols.resolve(address);
                location_id.push(self.location(address, 0, &functions));
            }
        }
        self.profile.sample.push(Sample { location_id, value: values, label: Vec::new() });
        self.profile.sample.last_mut().expect("one was just pushed")
    }

    /// As [`Self::sample`], with tags. Those with an empty text are left out.
    pub(super) fn tagged_sample(&mut self, stack: &[u64], values: Vec<i64>, tags: &Tags<'_>) {
        let label = self.labels(tags);
        self.sample(stack, values, |_| false).label = label;
    }

    /// Values of which no stack is known; `name` stands for the function.
    pub(super) fn stackless_sample(&mut self, name: &str, values: Vec<i64>, tags: &Tags<'_>) {
        let text = name.to_owned();
        let function =
            Function { name: text.clone(), system_name: text, file: String::new(), line: 0 };
        let location_id = vec![self.location(0, 0, &[function])];
        let label = self.labels(tags);
        self.profile.sample.push(Sample { location_id, value: values, label });
    }

    fn labels(&mut self, tags: &Tags<'_>) -> Vec<Label> {
        let texts = tags.texts.iter().filter(|(_, value)| !value.is_empty());
        let mut labels: Vec<Label> = texts
            .map(|(key, value)| Label {
                key: self.string(key),
                str: self.string(value),
                ..Label::default()
            })
            .collect();
        labels.extend(tags.numbers.iter().map(|(key, num)| Label {
            key: self.string(key),
            num: *num,
            ..Label::default()
        }));
        labels
    }

    /// Adds a sample whose frames, innermost first, are known by name and have no address.
    pub(super) fn named_sample(&mut self, frames: &[Function], values: Vec<i64>) {
        let mut location_id = Vec::with_capacity(frames.len());
        for frame in frames {
            let function_id = self.function(frame, false);
            // A name that the linker does not know: tools would demangle it otherwise.
            if let Some(function) = self.profile.function.get_mut(place_of(function_id)) {
                function.system_name = 0;
            }
            let id = match self.named.get(&(function_id, frame.line)) {
                Some(id) => *id,
                None => {
                    let id = next_id(self.profile.location.len());
                    let line = vec![Line { function_id, line: frame.line.into() }];
                    self.profile.location.push(Location { id, line, ..Location::default() });
                    self.named.insert((function_id, frame.line), id);
                    id
                }
            };
            location_id.push(id);
        }
        self.profile.sample.push(Sample { location_id, value: values, label: Vec::new() });
    }

    /// Says that every frame has its name: tools look for no symbols then.
    pub(super) fn needs_no_symbols(&mut self) {
        for mapping in &mut self.profile.mapping {
            mapping.has_functions = true;
        }
    }

    /// Gives the sample that was added last a text label; an empty text is none.
    pub(super) fn label(&mut self, key: &str, text: &str) {
        if text.is_empty() {
            return;
        }
        let label = Label { key: self.string(key), str: self.string(text), ..Label::default() };
        self.label_last(label);
    }

    /// Gives the sample that was added last a number with a unit.
    pub(super) fn number(&mut self, key: &str, number: i64, unit: &str) {
        let (key, num_unit) = (self.string(key), self.string(unit));
        self.label_last(Label { key, num: number, num_unit, ..Label::default() });
    }

    fn label_last(&mut self, label: Label) {
        if let Some(sample) = self.profile.sample.last_mut() {
            sample.label.push(label);
        }
    }

    /// The message, gzipped: the payload of every endpoint.
    pub(super) fn finish(mut self) -> Vec<u8> {
        for (place, name, file) in std::mem::take(&mut self.inlined) {
            let name = self.paths.complete(&name, &file);
            self.profile.function[place].name = self.string(&name);
        }
        self.profile.string_table = vec![String::new(); self.strings.len()];
        for (text, index) in self.strings {
            let index = usize::try_from(index).expect("indices count from 0");
            self.profile.string_table[index] = text;
        }
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&self.profile.encode_to_vec()).expect("a Vec takes every byte");
        gzip.finish().expect("a Vec takes every byte")
    }

    fn string(&mut self, text: &str) -> i64 {
        if let Some(index) = self.strings.get(text) {
            return *index;
        }
        let index = i64::try_from(self.strings.len()).expect("memory ends before i64 does");
        self.strings.insert(text.to_owned(), index);
        index
    }

    fn kind(&mut self, (ty, unit): Kind) -> ValueType {
        ValueType { ty: self.string(ty), unit: self.string(unit) }
    }

    fn location(&mut self, address: u64, skipped: usize, functions: &[Function]) -> u64 {
        if let Some(id) = self.locations.get(&(address, skipped)) {
            return *id;
        }
        let outermost = functions.len().saturating_sub(1);
        let line = (skipped..functions.len())
            .map(|index| Line {
                function_id: self.function(&functions[index], index < outermost),
                line: functions[index].line.into(),
            })
            .collect();
        let mapping = self
            .profile
            .mapping
            .iter_mut()
            .find(|mapping| (mapping.memory_start..mapping.memory_limit).contains(&address));
        let mapping_id = mapping.map_or(0, |mapping| {
            // Said only where it is true: tools look for symbols themselves otherwise.
            mapping.has_functions |= !functions.is_empty();
            mapping.has_filenames |= functions.iter().any(|function| !function.file.is_empty());
            mapping.has_line_numbers |= functions.iter().any(|function| function.line != 0);
            mapping.has_inline_frames |= functions.len() > 1;
            mapping.id
        });
        let id = next_id(self.profile.location.len());
        self.profile.location.push(Location { id, mapping_id, address, line, is_folded: false });
        self.locations.insert((address, skipped), id);
        id
    }

    fn function(&mut self, function: &Function, inlined: bool) -> u64 {
        let key = (function.system_name.clone(), function.file.clone());
        if let Some(id) = self.functions.get(&key) {
            return *id;
        }
        if inlined {
            let place = self.profile.function.len();
            self.inlined.push((place, function.name.clone(), function.file.clone()));
        } else {
            self.paths.learn(&function.name, &function.file);
        }
        let id = next_id(self.profile.function.len());
        let entry = pprof::protos::Function {
            id,
            name: self.string(&function.name),
            system_name: self.string(&function.system_name),
            filename: self.string(&function.file),
            start_line: 0,
        };
        self.profile.function.push(entry);
        self.functions.insert(key, id);
        id
    }

    fn add_mappings(&mut self) {
        for mapping in self.symbols.mappings().to_vec() {
            let entry = Mapping {
                id: next_id(self.profile.mapping.len()),
                memory_start: mapping.start,
                memory_limit: mapping.end,
                file_offset: mapping.offset,
                filename: self.string(&mapping.file.to_string_lossy()),
                build_id: self.string(&ElfFile::read_build_id(&mapping.file)),
                ..Mapping::default()
            };
            self.profile.mapping.push(entry);
        }
    }
}

fn place_of(id: u64) -> usize {
    usize::try_from(id).map_or(usize::MAX, |id| id.wrapping_sub(1))
}

/// Identifiers count from 1: 0 means none.
fn next_id(taken: usize) -> u64 {
    u64::try_from(taken).map_or(u64::MAX, |taken| taken + 1)
}
