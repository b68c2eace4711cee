//! Reading a few groups of a run's file without the engine: its index tells which pages may hold them, and only those are
//! read and decoded, once for as long as the cache keeps them.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use futures::future::{BoxFuture, try_join_all};
use futures::{FutureExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::arrow_reader::statistics::StatisticsConverter;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, RowSelection};
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::arrow::{ParquetRecordBatchStreamBuilder, ProjectionMask};
use parquet::errors::ParquetError;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};

use super::bounds::{KeyBounds, slice_of_some, within};
use super::order::has_statistics;
use super::pages::{OpenPages, PageCache};
use super::table::METADATA_SIZE_HINT;

/// Of larger groups (sketches, lists) none is decoded that is not wanted: their keys are read first.
const LARGE_GROUP_BYTES: usize = 512;

/// Rows that are decoded and kept together: as many as the file's own pages hold, but where groups are large.
const PAGE_ROWS: usize = 4_096;

/// A run's file, and where its groups stand in it.
#[derive(Debug)]
pub(super) struct RunIndex {
    file: RunFile,
    metadata: ArrowReaderMetadata,
    /// The first row of each row group, then the number of all rows.
    groups: Vec<usize>,
    /// The first row of each page, then the number of all rows.
    starts: Vec<usize>,
    /// What has been decoded of them: whole groups, or only their keys where groups are large.
    pages: OpenPages,
    /// Of each key column, the coarser zones first.
    keys: Vec<Vec<Zones>>,
    large: bool,
}

/// Rows that stand together, with the least and the greatest value of a key column; NULL where that is not known.
#[derive(Debug)]
struct Zones {
    /// The first row of each zone, then the number of all rows.
    starts: Vec<usize>,
    mins: ArrayRef,
    maxes: ArrayRef,
}

impl RunIndex {
    /// Reads the file's metadata and hands it to `check` before anything is made of it.
    pub(super) async fn open(
        store: Arc<dyn ObjectStore>,
        path: &Path,
        size_bytes: u64,
        (schema, keys): (&SchemaRef, usize),
        pages: &Arc<PageCache>,
        check: impl FnOnce(&Arc<ParquetMetaData>) -> Result<(), ParquetError>,
    ) -> Result<Self, ParquetError> {
        let mut file = RunFile { store, path: path.clone(), size_bytes };
        let metadata = file.get_metadata(None).await?;
        check(&metadata)?;
        let metadata = ArrowReaderMetadata::try_new(metadata, ArrowReaderOptions::new())?;
        let rows = metadata.metadata().row_groups().iter().map(|group| to_usize(group.num_rows()));
        let groups = starts(rows);
        let bytes: i64 = metadata.metadata().row_groups().iter().map(|group| group.total_byte_size()).sum();
        let large = to_usize(bytes) > groups.last().copied().unwrap_or(0).saturating_mul(LARGE_GROUP_BYTES);
        let keys = schema.fields()[..keys].iter().map(|key| match has_statistics(key.data_type()) {
            true => zones(&metadata, key.name(), &groups),
            false => Ok(Vec::new()),
        });
        let keys = keys.collect::<Result<_, _>>()?;
        let mut starts: Vec<usize> =
            groups.windows(2).flat_map(|group| (group[0]..group[1]).step_by(PAGE_ROWS)).collect();
        starts.extend(groups.last());
        Ok(Self { file, metadata, groups, starts, pages: OpenPages::new(pages), keys, large })
    }

    /// The groups within `bounds`, in the order of keys; `None` if that takes a look at more than `max_rows` of them.
    ///
    /// `bounds`: points on a prefix of the key, then anything on at most one more column.
    pub(super) async fn read(
        &self,
        bounds: &[KeyBounds],
        max_rows: usize,
    ) -> Result<Option<Vec<RecordBatch>>, ParquetError> {
        let rows = self.candidates(bounds);
        if count(&rows) > max_rows {
            return Ok(None);
        }
        let pages = self.pages_with(&rows);
        let read = try_join_all(pages.iter().map(|page| self.page(*page))).await?;
        if self.large {
            let exact = self.exact(&pages, &read, bounds);
            return self.decode(&exact, ProjectionMask::all()).await.map(Some);
        }
        Ok(Some(sliced(&read, bounds)))
    }

    /// As [`Self::read`] where all that it takes is at hand, else `None`.
    pub(super) fn at_hand(&self, bounds: &[KeyBounds], max_rows: usize) -> Option<Vec<RecordBatch>> {
        let rows = self.candidates(bounds);
        if self.large || count(&rows) > max_rows {
            return None;
        }
        let pages: Option<Vec<_>> = self.pages_with(&rows).into_iter().map(|page| self.pages.get(page)).collect();
        Some(sliced(&pages?, bounds))
    }

    /// The pages that have any of these rows.
    fn pages_with(&self, rows: &[Range<usize>]) -> Vec<usize> {
        let mut pages: Vec<usize> = Vec::new();
        for range in rows {
            let first = self.starts.partition_point(|start| *start <= range.start) - 1;
            let end = self.starts.partition_point(|start| *start < range.end);
            pages.extend(first.max(pages.last().map_or(0, |last| last + 1))..end);
        }
        pages
    }

    /// One page, decoded.
    async fn page(&self, page: usize) -> Result<RecordBatch, ParquetError> {
        if let Some(rows) = self.pages.get(page) {
            return Ok(rows);
        }
        let mask = match self.large {
            true => ProjectionMask::roots(self.metadata.parquet_schema(), 0..self.keys.len()),
            false => ProjectionMask::all(),
        };
        let of_page = self.starts[page]..self.starts[page + 1];
        let rows = match self.decode(std::slice::from_ref(&of_page), mask).await?.as_slice() {
            [whole] => whole.clone(),
            parts => concat_batches(
                &parts.first().map_or_else(|| Arc::clone(self.metadata.schema()), RecordBatch::schema),
                parts,
            )?,
        };
        self.pages.keep(page, &rows);
        Ok(rows)
    }

    /// Rows outside of which there is none within `bounds`.
    fn candidates(&self, bounds: &[KeyBounds]) -> Vec<Range<usize>> {
        let rows = self.groups.last().copied().unwrap_or(0);
        let mut candidates = Vec::from_iter((rows > 0).then_some(0..rows));
        for level in 0..2 {
            for (zones, bounds) in self.keys.iter().zip(bounds).filter_map(|(z, b)| Some((z.get(level)?, b))) {
                candidates = zones.narrow(&candidates, bounds);
            }
        }
        candidates
    }

    /// The rows within `bounds`, as the keys of these pages say.
    fn exact(&self, pages: &[usize], keys: &[RecordBatch], bounds: &[KeyBounds]) -> Vec<Range<usize>> {
        let mut rows = Vec::new();
        for (page, keys) in pages.iter().zip(keys) {
            let (from, to) = within(keys, bounds);
            push(&mut rows, self.starts[*page] + from..self.starts[*page] + to);
        }
        rows
    }

    /// The columns of `mask` of these rows, ascending and apart from each other.
    async fn decode(&self, rows: &[Range<usize>], mask: ProjectionMask) -> Result<Vec<RecordBatch>, ParquetError> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        // The selection counts from the first of the row groups that are read.
        let (mut groups, mut selected, mut before) = (Vec::new(), Vec::new(), 0);
        for (group, ends) in self.groups.windows(2).enumerate() {
            let inside: Vec<_> = rows.iter().filter_map(|range| overlap(range, &(ends[0]..ends[1]))).collect();
            if inside.is_empty() {
                continue;
            }
            groups.push(group);
            selected.extend(inside.iter().map(|r| r.start - ends[0] + before..r.end - ends[0] + before));
            before += ends[1] - ends[0];
        }
        let selection = RowSelection::from_consecutive_ranges(selected.into_iter(), before);
        ParquetRecordBatchStreamBuilder::new_with_metadata(self.file.clone(), self.metadata.clone())
            .with_projection(mask)
            .with_row_groups(groups)
            .with_row_selection(selection)
            .with_batch_size(count(rows))
            .build()?
            .try_collect()
            .await
    }
}

impl Zones {
    /// What of `rows` lies in zones that may hold a value within `bounds`.
    fn narrow(&self, rows: &[Range<usize>], bounds: &KeyBounds) -> Vec<Range<usize>> {
        let may_hold = bounds.overlaps(&self.mins, &self.maxes);
        let mut kept = Vec::new();
        for range in rows {
            let first = self.starts.partition_point(|start| *start <= range.start).saturating_sub(1);
            for (zone, ends) in self.starts.windows(2).enumerate().skip(first) {
                let Some(inside) = overlap(range, &(ends[0]..ends[1])) else { break };
                if may_hold(zone) {
                    push(&mut kept, inside);
                }
            }
        }
        kept
    }
}

fn sliced(pages: &[RecordBatch], bounds: &[KeyBounds]) -> Vec<RecordBatch> {
    pages.iter().filter_map(|page| slice_of_some(page, bounds)).collect()
}

/// Row groups, then pages, as far as the file tells of them.
fn zones(metadata: &ArrowReaderMetadata, key: &str, groups: &[usize]) -> Result<Vec<Zones>, ParquetError> {
    let file = metadata.metadata();
    let converter = StatisticsConverter::try_new(key, metadata.schema(), metadata.parquet_schema())?;
    let mut zones = vec![Zones {
        starts: groups.to_vec(),
        mins: converter.row_group_mins(file.row_groups())?,
        maxes: converter.row_group_maxes(file.row_groups())?,
    }];
    let leaf = converter.parquet_column_index();
    if let (Some(columns), Some(offsets), Some(leaf)) = (file.column_index(), file.offset_index(), leaf) {
        let all: Vec<usize> = (0..file.num_row_groups()).collect();
        let first_rows = groups.iter().zip(offsets).flat_map(|(group, leaves)| {
            leaves[leaf].page_locations().iter().map(move |page| group + to_usize(page.first_row_index))
        });
        let pages = Zones {
            starts: first_rows.chain(groups.last().copied()).collect(),
            mins: converter.data_page_mins(columns, offsets, &all)?,
            maxes: converter.data_page_maxes(columns, offsets, &all)?,
        };
        if pages.starts.len() == pages.mins.len() + 1 && pages.starts.len() == pages.maxes.len() + 1 {
            zones.push(pages);
        }
    }
    Ok(zones)
}

fn starts(lengths: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut starts = vec![0];
    starts.extend(lengths.scan(0, |end, length| {
        *end += length;
        Some(*end)
    }));
    starts
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> Option<Range<usize>> {
    let both = a.start.max(b.start)..a.end.min(b.end);
    (!both.is_empty()).then_some(both)
}

/// Adds what lies behind all ranges, or touches the last.
fn push(ranges: &mut Vec<Range<usize>>, next: Range<usize>) {
    match ranges.last_mut() {
        _ if next.is_empty() => {}
        Some(last) if last.end == next.start => last.end = next.end,
        _ => ranges.push(next),
    }
}

fn count(ranges: &[Range<usize>]) -> usize {
    ranges.iter().map(ExactSizeIterator::len).sum()
}

fn to_usize(value: i64) -> usize {
    usize::try_from(value).unwrap_or(0)
}

/// Bytes of one object.
#[derive(Debug, Clone)]
struct RunFile {
    store: Arc<dyn ObjectStore>,
    path: Path,
    size_bytes: u64,
}

impl AsyncFileReader for RunFile {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, ParquetError>> {
        async move { Ok(self.store.get_range(&self.path, range).await?) }.boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<Vec<Bytes>, ParquetError>> {
        async move { Ok(self.store.get_ranges(&self.path, &ranges).await?) }.boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        _: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>, ParquetError>> {
        async move {
            let size_bytes = self.size_bytes;
            let reader = ParquetMetaDataReader::new()
                .with_column_index_policy(PageIndexPolicy::Optional)
                .with_offset_index_policy(PageIndexPolicy::Optional)
                .with_prefetch_hint(Some(METADATA_SIZE_HINT));
            Ok(Arc::new(reader.load_and_finish(self, size_bytes).await?))
        }
        .boxed()
    }
}
