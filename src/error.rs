//! The one error type of the crate, and the statuses it becomes at the C boundary.
//!
//! Errors say what happened, where, to whom, and what to do about it. Those found before anything was published
//! ([`Error::is_harmless`]) change nothing; any other error of a communication call fails its group.

use std::fmt;

use crate::dtype::Collective;

/// The result type of the crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The statuses of the C API. Their numbers are part of the ABI and are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Status {
    /// The call did what it says.
    Success = 0,
    /// An argument is wrong; nothing was changed.
    InvalidArgument = 1,
    /// The arguments are right but the call may not be made now; nothing was changed.
    InvalidUsage = 2,
    /// Nothing here can serve the call; nothing was changed.
    Unsupported = 3,
    /// The machine has no memory left for the call.
    OutOfMemory = 4,
    /// The operating system refused something.
    SystemError = 5,
    /// The CUDA driver refused something.
    CudaError = 6,
    /// A communicator failed.
    CommunicatorError = 7,
    /// A rank did not arrive before the deadline.
    Timeout = 8,
    /// A rank died or left the group.
    PeerLost = 9,
    /// A rank aborted the group.
    Aborted = 10,
    /// The ranks called different things.
    Mismatch = 11,
    /// A defect of this library (a caught panic too).
    InternalError = 12,
    /// Not finished yet.
    InProgress = 13,
}

impl Status {
    /// The status with this number, if there is one.
    pub fn from_code(code: i32) -> Option<Self> {
        use Status::*;
        const ALL: [Status; 14] = [
            Success,
            InvalidArgument,
            InvalidUsage,
            Unsupported,
            OutOfMemory,
            SystemError,
            CudaError,
            CommunicatorError,
            Timeout,
            PeerLost,
            Aborted,
            Mismatch,
            InternalError,
            InProgress,
        ];
        ALL.into_iter().find(|status| *status as i32 == code)
    }

    /// The status in a few words.
    pub fn describe(self) -> &'static str {
        match self {
            Status::Success => "success",
            Status::InvalidArgument => "invalid argument",
            Status::InvalidUsage => "invalid usage",
            Status::Unsupported => "unsupported",
            Status::OutOfMemory => "out of memory",
            Status::SystemError => "system error",
            Status::CudaError => "CUDA error",
            Status::CommunicatorError => "communicator error",
            Status::Timeout => "timeout",
            Status::PeerLost => "peer lost",
            Status::Aborted => "aborted",
            Status::Mismatch => "ranks disagree",
            Status::InternalError => "internal error",
            Status::InProgress => "in progress",
        }
    }
}

/// The failure of a group: the first one is recorded once, and every rank reports that one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// [`Status::Timeout`], [`Status::PeerLost`], [`Status::Aborted`], [`Status::Mismatch`], or what else went wrong.
    pub status: Status,
    /// The rank, within the group, that is missing, lost, disagreeing or aborting.
    pub rank: Option<u32>,
    /// The call during which the failure was found.
    pub collective: Option<Collective>,
    /// That call's number in the group, counted from 1; 0 where there is none.
    pub sequence: u64,
    /// The whole story in one sentence.
    pub text: String,
}

/// What can go wrong.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// An argument is wrong.
    #[error("{0}")]
    InvalidArgument(String),
    /// The call may not be made now.
    #[error("{0}")]
    InvalidUsage(String),
    /// Nothing can serve the call here.
    #[error("{0}")]
    Unsupported(String),
    /// No memory for what is named.
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    /// A system call failed; `what` says what for.
    #[error("{what}: {}", std::io::Error::from_raw_os_error(*.errno))]
    System {
        /// What was being done.
        what: String,
        /// The error number.
        errno: i32,
    },
    /// The CUDA driver refused something; the text names the function and the driver's name of the code.
    #[error("{what}")]
    Cuda {
        /// What was being done, and what the driver said.
        what: String,
        /// The driver's code.
        code: i32,
    },
    /// A group, or the making of one, failed; ranks are named as in [`Failure`].
    #[error("{}", .0.text)]
    Failed(Box<Failure>),
    /// A defect of this library.
    #[error("internal error: {0}")]
    Internal(String),
}

impl Error {
    /// An [`Error::InvalidArgument`] from anything printable.
    pub fn invalid(text: impl fmt::Display) -> Self {
        Error::InvalidArgument(text.to_string())
    }

    /// An [`Error::InvalidUsage`] from anything printable.
    pub fn usage(text: impl fmt::Display) -> Self {
        Error::InvalidUsage(text.to_string())
    }

    /// An [`Error::System`] from a failed call of the operating system.
    pub fn system(what: impl fmt::Display, errno: rustix::io::Errno) -> Self {
        if errno == rustix::io::Errno::NOMEM {
            return Error::OutOfMemory(what.to_string());
        }
        Error::System { what: what.to_string(), errno: errno.raw_os_error() }
    }

    /// A failure outside any collective call, such as while a group is made.
    pub fn failed(status: Status, rank: Option<u32>, text: impl fmt::Display) -> Self {
        Error::Failed(Box::new(Failure { status, rank, collective: None, sequence: 0, text: text.to_string() }))
    }

    /// The same error, which first says what it came over. The failure of a group tells its own story, alike on all ranks.
    pub fn over(self, what: impl fmt::Display) -> Self {
        let told = |text: String| format!("{what}: {text}");
        match self {
            Error::InvalidArgument(text) => Error::InvalidArgument(told(text)),
            Error::InvalidUsage(text) => Error::InvalidUsage(told(text)),
            Error::Unsupported(text) => Error::Unsupported(told(text)),
            Error::OutOfMemory(text) => Error::OutOfMemory(told(text)),
            Error::System { what: text, errno } => Error::System { what: told(text), errno },
            Error::Cuda { what: text, code } => Error::Cuda { what: told(text), code },
            Error::Failed(failure) => Error::Failed(failure),
            Error::Internal(text) => Error::Internal(told(text)),
        }
    }

    /// What the C caller gets.
    pub fn status(&self) -> Status {
        match self {
            Error::InvalidArgument(_) => Status::InvalidArgument,
            Error::InvalidUsage(_) => Status::InvalidUsage,
            Error::Unsupported(_) => Status::Unsupported,
            Error::OutOfMemory(_) => Status::OutOfMemory,
            Error::System { .. } => Status::SystemError,
            Error::Cuda { .. } => Status::CudaError,
            Error::Failed(failure) => failure.status,
            Error::Internal(_) => Status::InternalError,
        }
    }

    /// Whether the error was found before anything was published, so that the group lives on unchanged.
    pub fn is_harmless(&self) -> bool {
        matches!(self, Error::InvalidArgument(_) | Error::InvalidUsage(_) | Error::Unsupported(_))
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Error::Failed(Box::new(failure))
    }
}
