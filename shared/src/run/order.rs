//! The order of a run: strictly ascending by the group key, NULL first.

use arrow::array::RecordBatch;
use arrow::compute::SortOptions;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::row::{OwnedRow, RowConverter, SortField};

use super::Error;

/// Of every key column.
pub(super) const SORT_OPTIONS: SortOptions = SortOptions { descending: false, nulls_first: true };

/// Checks batch after batch that the rows of a run are in order, each key once.
#[derive(Debug)]
pub(super) struct OrderCheck {
    converter: RowConverter,
    keys: usize,
    last: Option<OwnedRow>,
    rows: u64,
}

impl OrderCheck {
    pub(super) fn new(schema: &SchemaRef, keys: usize) -> Result<Self, Error> {
        if keys > schema.fields().len() {
            return Err(Error::TooFewColumns { keys, columns: schema.fields().len() });
        }
        let fields = schema.fields()[..keys]
            .iter()
            .map(|f| SortField::new_with_options(f.data_type().clone(), SORT_OPTIONS))
            .collect();
        Ok(Self { converter: RowConverter::new(fields).map_err(Error::Keys)?, keys, last: None, rows: 0 })
    }

    /// Takes the next batch.
    pub(super) fn push(&mut self, batch: &RecordBatch) -> Result<(), Error> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        if self.keys == 0 {
            // Without keys there is one group.
            if self.rows + batch.num_rows() as u64 > 1 {
                return Err(Error::NotSorted { row: 1 });
            }
            self.rows += 1;
            return Ok(());
        }
        let rows = self.converter.convert_columns(&batch.columns()[..self.keys]).map_err(Error::Keys)?;
        if self.last.as_ref().is_some_and(|last| last.row() >= rows.row(0)) {
            return Err(Error::NotSorted { row: self.rows });
        }
        for i in 1..rows.num_rows() {
            if rows.row(i - 1) >= rows.row(i) {
                return Err(Error::NotSorted { row: self.rows + i as u64 });
            }
        }
        self.last = Some(rows.row(rows.num_rows() - 1).owned());
        self.rows += batch.num_rows() as u64;
        Ok(())
    }
}

/// Whether Parquet's statistics of a key of this type tell which rows can't match a filter.
///
/// Nested keys have none. Those of floats leave out NaN, which is the greatest value to the engine: it would be pruned.
pub(super) fn has_statistics(data_type: &DataType) -> bool {
    !data_type.is_nested() && !data_type.is_floating()
}
