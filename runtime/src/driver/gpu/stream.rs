//! Streams and timing events.

use super::api::*;
use super::guards::{EventGuard, StreamGuard, note};
use super::memory::Shared;
use crate::driver::{Buffer, Event, ExternalStream, StreamBackend};
use crate::error::{Error, Result};
use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a stream is waited for once its work may never end: programs that wait for others leave when they are told to.
const GIVE_UP: Duration = Duration::from_secs(1);
/// How long a stream is looked at without a pause.
const PATIENCE: Duration = Duration::from_millis(20);
/// The pause after that.
const NAP: Duration = Duration::from_micros(50);

/// A stream of our own or of an embedding engine.
#[derive(Debug)]
pub struct GpuStream {
    shared: Arc<Shared>,
    own: Option<StreamGuard>,
    handle: StreamHandle,
    /// What copies in flight read and write.
    in_flight: Vec<Buffer>,
    /// What was replayed last, for the text of an error that only shows when the stream is waited for.
    last: Option<Arc<str>>,
}

impl GpuStream {
    /// A new stream, or a view of `external`; the device is current.
    pub fn new(shared: &Arc<Shared>, external: Option<&ExternalStream>) -> Result<GpuStream> {
        let own = match external {
            Some(_) => None,
            None => Some(StreamGuard::new(&shared.api)?),
        };
        let handle = match (&own, external) {
            (Some(guard), _) => guard.handle(),
            (None, external) => StreamHandle(external.map_or(0, |e| e.handle)),
        };
        Ok(GpuStream { shared: Arc::clone(shared), own, handle, in_flight: Vec::new(), last: None })
    }

    /// The stream behind a trait object, which must be of the device of `shared`.
    pub fn of<'a>(stream: &'a mut dyn StreamBackend, shared: &Arc<Shared>) -> Result<&'a mut GpuStream> {
        match stream.as_any().downcast_mut::<GpuStream>() {
            Some(stream) if Arc::ptr_eq(&stream.shared, shared) => Ok(stream),
            _ => Err(Error::Driver("the stream is of another device".into())),
        }
    }

    /// The handle, live as long as the stream.
    pub fn handle(&self) -> StreamHandle {
        self.handle
    }

    /// Notes what runs now.
    pub fn note(&mut self, label: &Arc<str>) {
        self.last = Some(Arc::clone(label));
    }

    /// An error that the stream reported, with what was replayed last.
    pub fn failure(&self, e: ApiError) -> Error {
        match &self.last {
            Some(label) => e.during(format_args!(
                "{label} on {:?} (set WELDMENT_LAUNCH_BLOCKING=1 to learn which kernel)",
                self.shared
            )),
            None => e.during(format_args!("work on {:?}", self.shared)),
        }
    }

    fn wait(&self) -> ApiResult<()> {
        // SAFETY: our own stream is live as long as its guard; an external one by its maker's promise.
        unsafe { self.shared.api.synchronize_stream(self.handle) }
    }
}

impl Drop for GpuStream {
    fn drop(&mut self) {
        // Buffers in flight must not go before the work that uses them; a failed device has none left.
        if self.own.is_some() || !self.in_flight.is_empty() {
            note("waiting for a stream to end", self.shared.api.make_current());
            note("waiting for a stream to end", self.wait());
        }
    }
}

impl StreamBackend for GpuStream {
    fn as_any(&mut self) -> &mut dyn Any {
        self
    }

    fn synchronize(&mut self) -> Result<()> {
        self.shared.current()?;
        let result = self.wait().map_err(|e| self.failure(e));
        self.in_flight.clear();
        result
    }

    fn synchronize_unless(&mut self, over: &dyn Fn() -> bool) -> Result<()> {
        self.shared.current()?;
        let began = Instant::now();
        let mut over_since = None;
        loop {
            // SAFETY: as in `wait`.
            if unsafe { self.shared.api.query_stream(self.handle) }.map_err(|e| self.failure(e))? {
                // Nothing is left to wait for; this clears what the copies kept.
                return self.synchronize();
            }
            if over_since.is_some_and(|since: Instant| since.elapsed() > GIVE_UP) {
                return Err(Error::Driver(format!("work on {:?} does not end", self.shared)));
            }
            if over_since.is_none() && over() {
                over_since = Some(Instant::now());
            }
            // A step is some milliseconds; whoever waits longer need not burn a core.
            if began.elapsed() > PATIENCE { std::thread::sleep(NAP) } else { std::hint::spin_loop() }
        }
    }

    fn record(&mut self) -> Result<Event> {
        self.shared.current()?;
        let event = EventGuard::new(&self.shared.api, true)?;
        event.record(self.handle).map_err(|e| self.failure(e))?;
        Ok(Event::gpu(event))
    }

    fn download(&mut self, from: &Buffer, to: &Buffer, bytes: usize) -> Result<()> {
        let (Some(source), Some(target)) = (from.device_range(bytes), to.host_range_mut(bytes)) else {
            return Err(Error::Driver(format!("{bytes} bytes cannot be copied from {from:?} to {to:?}")));
        };
        self.shared.current()?;
        // SAFETY: both ranges hold `bytes` bytes and are kept alive in `in_flight` until the stream was waited for.
        unsafe { self.shared.api.copy_to_host(target, source, bytes, self.handle) }.map_err(|e| self.failure(e))?;
        self.keep(from);
        self.keep(to);
        Ok(())
    }

    fn copy(&mut self, from: &Buffer, to: &Buffer, bytes: usize) -> Result<()> {
        let (Some(source), Some(target)) = (from.device_range(bytes), to.device_range(bytes)) else {
            return Err(Error::Driver(format!("{bytes} bytes cannot be copied from {from:?} to {to:?}")));
        };
        self.shared.current()?;
        // SAFETY: as in `download`.
        unsafe { self.shared.api.copy_on_device(target, source, bytes, self.handle) }.map_err(|e| self.failure(e))?;
        self.keep(from);
        self.keep(to);
        Ok(())
    }
}

impl GpuStream {
    fn keep(&mut self, buffer: &Buffer) {
        if !self.in_flight.iter().any(|b| b.same_memory(buffer)) {
            self.in_flight.push(buffer.clone());
        }
    }
}

/// Time between two events, both of which are waited for.
pub fn elapsed(now: &EventGuard, then: &EventGuard) -> Result<Duration> {
    let failed = |e: ApiError| e.during("cannot time events");
    then.synchronize().and_then(|()| now.synchronize()).map_err(failed)?;
    let ms = now.elapsed_ms(then).map_err(failed)?;
    Ok(Duration::from_secs_f64(f64::from(ms.max(0.0)) / 1e3))
}
