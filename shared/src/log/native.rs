//! What of librdkafka the `rdkafka` crate does not wrap: describing a topic with its id, listing the offsets of all
//! partitions at once, and consuming many records with one call. Nothing outside this file is `unsafe`.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char};
use std::ptr::NonNull;
use std::time::Duration;

use base64::Engine;
use rdkafka::bindings as sys;
use rdkafka::bindings::rd_kafka_resp_err_t as Code;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};

use crate::offsets::{Offset, PartitionId};

/// An error of librdkafka with its text.
#[derive(Debug, Clone)]
pub(super) struct NativeError {
    pub(super) code: Code,
    pub(super) text: String,
}

impl NativeError {
    fn of(code: Code) -> Self {
        // SAFETY: returns a pointer to static text for any code.
        let text = unsafe { text(sys::rd_kafka_err2str(code)) };
        Self { code, text }
    }
}

/// # Safety
/// `s` is NULL or a NUL-terminated string.
unsafe fn text(s: *const c_char) -> String {
    if s.is_null() {
        return String::new();
    }
    // SAFETY: by contract.
    unsafe { CStr::from_ptr(s) }.to_string_lossy().into_owned()
}

/// A queue of a client's own. The client outlives it, as the field order of its owners ensures.
struct Queue(NonNull<sys::rd_kafka_queue_t>);

impl Queue {
    fn new<C: ConsumerContext>(client: &BaseConsumer<C>) -> Self {
        // SAFETY: the client lives; librdkafka never returns NULL here.
        let queue = unsafe { sys::rd_kafka_queue_new(client.client().native_ptr()) };
        Self(NonNull::new(queue).expect("rd_kafka_queue_new aborts when it is out of memory"))
    }

    fn ptr(&self) -> *mut sys::rd_kafka_queue_t {
        self.0.as_ptr()
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: created by `new`, destroyed once.
        unsafe { sys::rd_kafka_queue_destroy(self.ptr()) }
    }
}

/// The result event of an admin request.
struct Event(NonNull<sys::rd_kafka_event_t>);

impl Event {
    /// Waits for the one event of `queue`.
    fn wait(queue: &Queue, timeout: Duration) -> Result<Self, NativeError> {
        let millis = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the queue lives.
        let event = unsafe { sys::rd_kafka_queue_poll(queue.ptr(), millis) };
        let event = Self(NonNull::new(event).ok_or_else(|| NativeError::of(Code::RD_KAFKA_RESP_ERR__TIMED_OUT))?);
        // SAFETY: the event lives until it is dropped.
        let code = unsafe { sys::rd_kafka_event_error(event.0.as_ptr()) };
        if code != Code::RD_KAFKA_RESP_ERR_NO_ERROR {
            // SAFETY: as above.
            let text = unsafe { text(sys::rd_kafka_event_error_string(event.0.as_ptr())) };
            return Err(NativeError { code, text });
        }
        Ok(event)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: polled from a queue, destroyed once.
        unsafe { sys::rd_kafka_event_destroy(self.0.as_ptr()) }
    }
}

/// Options of an admin request.
struct AdminOptions(NonNull<sys::rd_kafka_AdminOptions_t>);

impl AdminOptions {
    fn new<C: ConsumerContext>(
        client: &BaseConsumer<C>,
        operation: sys::rd_kafka_admin_op_t,
        timeout: Duration,
    ) -> Self {
        let millis = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        let mut error: [c_char; 256] = [0; 256];
        // SAFETY: the client lives; the buffer is as long as said. A timeout within librdkafka's bounds is accepted.
        unsafe {
            let options = sys::rd_kafka_AdminOptions_new(client.client().native_ptr(), operation);
            let options = Self(NonNull::new(options).expect("the operation is one that this librdkafka has"));
            let code = sys::rd_kafka_AdminOptions_set_request_timeout(
                options.0.as_ptr(),
                millis,
                error.as_mut_ptr(),
                error.len(),
            );
            debug_assert_eq!(code, Code::RD_KAFKA_RESP_ERR_NO_ERROR, "{}", text(error.as_ptr()));
            options
        }
    }
}

impl Drop for AdminOptions {
    fn drop(&mut self) {
        // SAFETY: created by `new`, destroyed once.
        unsafe { sys::rd_kafka_AdminOptions_destroy(self.0.as_ptr()) }
    }
}

/// A topic as the cluster describes it.
#[derive(Debug, Clone)]
pub(super) struct Description {
    pub(super) partitions: usize,
    pub(super) topic_id: Option<String>,
}

/// The id of any broker. Blocks up to `timeout`.
fn any_broker<C: ConsumerContext>(client: &BaseConsumer<C>, timeout: Duration) -> Result<i32, NativeError> {
    let millis = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    let mut metadata = std::ptr::null();
    // SAFETY: the client lives; what is returned is looked at and then destroyed, once. No topic: those known locally.
    unsafe {
        let code = sys::rd_kafka_metadata(client.client().native_ptr(), 0, std::ptr::null_mut(), &mut metadata, millis);
        if code != Code::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(NativeError::of(code));
        }
        let brokers = (*metadata).broker_cnt;
        let id = (brokers > 0).then(|| (*(*metadata).brokers).id);
        sys::rd_kafka_metadata_destroy(metadata);
        id.ok_or_else(|| NativeError::of(Code::RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN))
    }
}

/// Asks the cluster for a topic; `None` when it does not exist. Blocks up to twice `timeout`.
pub(super) fn describe_topic<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    topic: &CStr,
    timeout: Duration,
) -> Result<Option<Description>, NativeError> {
    let queue = Queue::new(client);
    let options = AdminOptions::new(client, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS, timeout);
    // By itself librdkafka asks the controller, and waits for one while it is being elected. Any broker knows the topics.
    let broker = any_broker(client, timeout)?;
    let mut error: [c_char; 256] = [0; 256];
    // SAFETY: the options live, the buffer is as long as said. A broker's id is never negative, so it is accepted.
    let code =
        unsafe { sys::rd_kafka_AdminOptions_set_broker(options.0.as_ptr(), broker, error.as_mut_ptr(), error.len()) };
    debug_assert_eq!(code, Code::RD_KAFKA_RESP_ERR_NO_ERROR);
    let mut names = [topic.as_ptr()];
    // SAFETY: all pointers live through the call, which copies the names.
    unsafe {
        let topics = sys::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len());
        sys::rd_kafka_DescribeTopics(client.client().native_ptr(), topics, options.0.as_ptr(), queue.ptr());
        sys::rd_kafka_TopicCollection_destroy(topics);
    }
    let event = Event::wait(&queue, timeout + Duration::from_secs(1))?;
    // SAFETY: the event is of this type, since only this request answers on the queue; what it returns lives as long as it.
    unsafe {
        let result = sys::rd_kafka_event_DescribeTopics_result(event.0.as_ptr());
        let mut count = 0;
        let topics = sys::rd_kafka_DescribeTopics_result_topics(result, &mut count);
        if count == 0 {
            return Ok(None);
        }
        let description = *topics;
        let error = sys::rd_kafka_TopicDescription_error(description);
        if !error.is_null() {
            let code = sys::rd_kafka_error_code(error);
            match code {
                Code::RD_KAFKA_RESP_ERR_NO_ERROR => {}
                Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART | Code::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC => {
                    return Ok(None);
                }
                _ => return Err(NativeError { code, text: text(sys::rd_kafka_error_string(error)) }),
            }
        }
        let mut partitions = 0;
        sys::rd_kafka_TopicDescription_partitions(description, &mut partitions);
        let id = sys::rd_kafka_TopicDescription_topic_id(description);
        Ok(Some(Description { partitions, topic_id: topic_id(id) }))
    }
}

/// Kafka's own text form of a topic id; `None` for the zero id of clusters that have none.
///
/// # Safety
/// `id` is NULL or lives.
unsafe fn topic_id(id: *const sys::rd_kafka_Uuid_t) -> Option<String> {
    if id.is_null() {
        return None;
    }
    // SAFETY: by contract.
    let (most, least) =
        unsafe { (sys::rd_kafka_Uuid_most_significant_bits(id), sys::rd_kafka_Uuid_least_significant_bits(id)) };
    if (most, least) == (0, 0) {
        return None;
    }
    let bytes = [most.to_be_bytes(), least.to_be_bytes()].concat();
    Some(base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes))
}

/// Which offset of a partition to list.
#[derive(Debug, Clone, Copy)]
pub(super) enum OffsetSpec {
    Earliest,
    /// The last stable one.
    Latest,
}

/// Lists an offset of partitions `0..partitions` in one request, reading committed. Blocks up to `timeout`.
pub(super) fn list_offsets<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    topic: &CStr,
    partitions: usize,
    spec: OffsetSpec,
    timeout: Duration,
) -> Result<BTreeMap<PartitionId, Offset>, NativeError> {
    if partitions == 0 {
        return Ok(BTreeMap::new());
    }
    let queue = Queue::new(client);
    let options = AdminOptions::new(client, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTOFFSETS, timeout);
    let spec = match spec {
        OffsetSpec::Earliest => sys::rd_kafka_OffsetSpec_t::RD_KAFKA_OFFSET_SPEC_EARLIEST,
        OffsetSpec::Latest => sys::rd_kafka_OffsetSpec_t::RD_KAFKA_OFFSET_SPEC_LATEST,
    };
    // SAFETY: all pointers live through the calls, which copy what they need.
    unsafe {
        let error = sys::rd_kafka_AdminOptions_set_isolation_level(
            options.0.as_ptr(),
            sys::rd_kafka_IsolationLevel_t::RD_KAFKA_ISOLATION_LEVEL_READ_COMMITTED,
        );
        assert!(error.is_null(), "ListOffsets takes an isolation level");
        let list = sys::rd_kafka_topic_partition_list_new(i32::try_from(partitions).unwrap_or(0));
        for partition in 0..partitions {
            let partition = i32::try_from(partition).expect("partition numbers are i32");
            (*sys::rd_kafka_topic_partition_list_add(list, topic.as_ptr(), partition)).offset = spec as i64;
        }
        sys::rd_kafka_ListOffsets(client.client().native_ptr(), list, options.0.as_ptr(), queue.ptr());
        sys::rd_kafka_topic_partition_list_destroy(list);
    }
    let event = Event::wait(&queue, timeout + Duration::from_secs(1))?;
    let mut offsets = BTreeMap::new();
    // SAFETY: the event is of this type, since only this request answers on the queue; what it returns lives as long as it.
    unsafe {
        let result = sys::rd_kafka_event_ListOffsets_result(event.0.as_ptr());
        let mut count = 0;
        let infos = sys::rd_kafka_ListOffsets_result_infos(result, &mut count);
        for i in 0..count {
            let found = &*sys::rd_kafka_ListOffsetsResultInfo_topic_partition(*infos.add(i));
            if found.err != Code::RD_KAFKA_RESP_ERR_NO_ERROR {
                return Err(NativeError::of(found.err));
            }
            offsets.insert(PartitionId(found.partition), Offset(found.offset));
        }
    }
    Ok(offsets)
}

/// One entry of a partition's queue, borrowed while it is looked at.
#[derive(Debug)]
pub(super) enum Entry<'a> {
    Record(Record<'a>),
    /// The end of the partition: the next record will have this offset or a greater one.
    End {
        partition: PartitionId,
        offset: Offset,
    },
    Failed {
        partition: PartitionId,
        offset: Offset,
        error: NativeError,
    },
}

/// A consumed record, borrowed from librdkafka.
#[derive(Debug)]
pub(super) struct Record<'a> {
    pub(super) partition: PartitionId,
    pub(super) offset: Offset,
    pub(super) key: Option<&'a [u8]>,
    pub(super) value: Option<&'a [u8]>,
    /// Milliseconds since the epoch.
    pub(super) timestamp_millis: Option<i64>,
    /// Of the leader that wrote it; `None` where the broker does not say.
    pub(super) leader_epoch: Option<i32>,
    message: &'a sys::rd_kafka_message_t,
}

impl Record<'_> {
    /// Calls `each` with every header, in order.
    pub(super) fn headers(&self, mut each: impl FnMut(String, Option<&[u8]>)) {
        let mut headers = std::ptr::null_mut();
        // SAFETY: the message lives as long as `self`, and its headers as long as it.
        unsafe {
            if sys::rd_kafka_message_headers(self.message, &mut headers) != Code::RD_KAFKA_RESP_ERR_NO_ERROR {
                return;
            }
            let (mut name, mut value, mut size) = (std::ptr::null(), std::ptr::null(), 0);
            for i in 0.. {
                if sys::rd_kafka_header_get_all(headers, i, &mut name, &mut value, &mut size)
                    != Code::RD_KAFKA_RESP_ERR_NO_ERROR
                {
                    return;
                }
                each(text(name), slice(value, size));
            }
        }
    }
}

/// # Safety
/// `data` is NULL or points to `len` bytes that live for `'a`.
unsafe fn slice<'a>(data: *const std::ffi::c_void, len: usize) -> Option<&'a [u8]> {
    // SAFETY: by contract.
    (!data.is_null()).then(|| unsafe { std::slice::from_raw_parts(data.cast::<u8>(), len) })
}

/// Reads partitions of one topic from explicit offsets into one queue, without a consumer group: nothing can be
/// committed, and no coordinator is asked for.
pub(super) struct PartitionReader<C: ConsumerContext + 'static> {
    messages: Vec<*mut sys::rd_kafka_message_t>,
    started: Vec<PartitionId>,
    topic: NonNull<sys::rd_kafka_topic_t>,
    // Fields drop in this order: the queue before its client.
    queue: Queue,
    client: BaseConsumer<C>,
}

// SAFETY: librdkafka's objects may be used from any thread; the buffer of messages is empty between calls.
unsafe impl<C: ConsumerContext + 'static> Send for PartitionReader<C> {}

impl<C: ConsumerContext + 'static> PartitionReader<C> {
    /// `batch`: how many entries one call of [`Self::poll`] gives at most.
    pub(super) fn new(client: BaseConsumer<C>, topic: &CStr, batch: usize) -> Result<Self, NativeError> {
        // SAFETY: the client lives; NULL as configuration takes the client's defaults.
        let handle =
            unsafe { sys::rd_kafka_topic_new(client.client().native_ptr(), topic.as_ptr(), std::ptr::null_mut()) };
        let Some(handle) = NonNull::new(handle) else {
            // SAFETY: reads a thread-local.
            return Err(NativeError::of(unsafe { sys::rd_kafka_last_error() }));
        };
        Ok(Self {
            messages: vec![std::ptr::null_mut(); batch.max(1)],
            started: Vec::new(),
            topic: handle,
            queue: Queue::new(&client),
            client,
        })
    }

    pub(super) fn client(&self) -> &BaseConsumer<C> {
        &self.client
    }

    /// Starts to read `partition` at `offset`.
    pub(super) fn start(&mut self, partition: PartitionId, offset: Offset) -> Result<(), NativeError> {
        // SAFETY: topic and queue live.
        let failed = unsafe {
            sys::rd_kafka_consume_start_queue(self.topic.as_ptr(), partition.0, offset.0, self.queue.ptr()) != 0
        };
        if failed {
            // SAFETY: reads a thread-local.
            return Err(NativeError::of(unsafe { sys::rd_kafka_last_error() }));
        }
        self.started.push(partition);
        Ok(())
    }

    /// As [`Self::start`], for partitions whose record in front of the offset was written in the named leader epoch: if
    /// the log has been cut off in between, the partition's first entry is an error that says so, and nothing is read.
    /// Blocks up to `timeout`.
    pub(super) fn start_behind(
        &mut self,
        topic: &CStr,
        starts: &[(PartitionId, Offset, i32)],
        timeout: Duration,
    ) -> Result<(), NativeError> {
        let millis = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        let client = self.client.client().native_ptr();
        let mut metadata = std::ptr::null();
        // SUBTLE: without it the client has not heard of the partitions, and refuses to seek in them.
        // SAFETY: client and topic live; what is returned is destroyed, once.
        unsafe {
            let code = sys::rd_kafka_metadata(client, 0, self.topic.as_ptr(), &mut metadata, millis);
            if code != Code::RD_KAFKA_RESP_ERR_NO_ERROR {
                return Err(NativeError::of(code));
            }
            sys::rd_kafka_metadata_destroy(metadata);
        }
        for (partition, offset, _) in starts {
            self.start(*partition, *offset)?;
        }
        // SUBTLE: only a seek takes an epoch. What was fetched between the start and the seek is of an older version of
        // the position, which is dropped when the queue is polled.
        // SAFETY: all pointers live through the calls, which copy what they need; list and error are destroyed, once.
        unsafe {
            let list = sys::rd_kafka_topic_partition_list_new(i32::try_from(starts.len()).unwrap_or(0));
            for (partition, offset, epoch) in starts {
                let place = sys::rd_kafka_topic_partition_list_add(list, topic.as_ptr(), partition.0);
                (*place).offset = offset.0;
                sys::rd_kafka_topic_partition_set_leader_epoch(place, *epoch);
            }
            let error = sys::rd_kafka_seek_partitions(client, list, millis);
            let mut outcome = Ok(());
            if !error.is_null() {
                let (code, text) = (sys::rd_kafka_error_code(error), text(sys::rd_kafka_error_string(error)));
                sys::rd_kafka_error_destroy(error);
                outcome = Err(NativeError { code, text });
            }
            for i in 0..usize::try_from((*list).cnt).unwrap_or(0) {
                let place = &*(*list).elems.add(i);
                if place.err != Code::RD_KAFKA_RESP_ERR_NO_ERROR && outcome.is_ok() {
                    outcome = Err(NativeError::of(place.err));
                }
            }
            sys::rd_kafka_topic_partition_list_destroy(list);
            outcome
        }
    }

    /// Waits up to `wait` for the first entry, then gives it and what else is there to `each`. Returns how many there were.
    pub(super) fn poll(&mut self, wait: Duration, mut each: impl FnMut(Entry<'_>)) -> usize {
        let millis = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX);
        // One call with a timeout would wait for the whole batch to fill, so the first entry is waited for alone.
        let capacity = self.messages.len();
        // SAFETY: the queue lives, the buffer is as long as said.
        let mut count =
            unsafe { sys::rd_kafka_consume_batch_queue(self.queue.ptr(), millis, self.messages.as_mut_ptr(), 1) };
        if count == 1 && capacity > 1 {
            // SAFETY: as above, from the second place on.
            let more = unsafe {
                sys::rd_kafka_consume_batch_queue(self.queue.ptr(), 0, self.messages.as_mut_ptr().add(1), capacity - 1)
            };
            count += more.max(0);
        }
        let count = usize::try_from(count).unwrap_or(0);
        for message in &self.messages[..count] {
            // SAFETY: librdkafka filled the first `count` places; each is looked at, then destroyed, once.
            unsafe {
                each(entry(&**message));
                sys::rd_kafka_message_destroy(*message);
            }
        }
        count
    }
}

impl<C: ConsumerContext + 'static> Drop for PartitionReader<C> {
    fn drop(&mut self) {
        // SAFETY: what was started is stopped, then the topic handle is given back; queue and client follow.
        unsafe {
            for partition in &self.started {
                sys::rd_kafka_consume_stop(self.topic.as_ptr(), partition.0);
            }
            sys::rd_kafka_topic_destroy(self.topic.as_ptr());
        }
    }
}

/// # Safety
/// `message` came from librdkafka and lives.
unsafe fn entry(message: &sys::rd_kafka_message_t) -> Entry<'_> {
    let partition = PartitionId(message.partition);
    let offset = Offset(message.offset);
    match message.err {
        Code::RD_KAFKA_RESP_ERR_NO_ERROR => {
            let mut kind = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
            // SAFETY: the message lives, by contract.
            unsafe {
                let millis = sys::rd_kafka_message_timestamp(message, &mut kind);
                let epoch = sys::rd_kafka_message_leader_epoch(message);
                let known = kind != sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE && millis >= 0;
                Entry::Record(Record {
                    partition,
                    offset,
                    key: slice(message.key, message.key_len),
                    value: slice(message.payload, message.len),
                    timestamp_millis: known.then_some(millis),
                    leader_epoch: (epoch >= 0).then_some(epoch),
                    message,
                })
            }
        }
        Code::RD_KAFKA_RESP_ERR__PARTITION_EOF => Entry::End { partition, offset },
        code => {
            // SAFETY: as above; the text is of a message that failed.
            let text = unsafe { text(sys::rd_kafka_message_errstr(message)) };
            Entry::Failed { partition, offset, error: NativeError { code, text } }
        }
    }
}

/// `name` for C.
pub(super) fn c_string(name: &str) -> Option<CString> {
    CString::new(name).ok()
}
