//! The commands: one file each; this one only parses and dispatches.

            Self::Doctor(args) => args.run(context),
            Self::Completions(args) => args.run(context),
