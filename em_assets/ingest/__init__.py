"""The CryoET Data Portal's ingestion config (YAML, version 1.3.0): read, planned and carried out.

    config.py     the file as typed values, each with its line; everything that is wrong with it at once
    schema.py     which keys there are, and which must be there; metadata.py and fields.py what each may hold
    yaml_lines.py the YAML itself: values, and the line of each
    templates.py  `{run_name}`, `{column}`, `float {column}`
    run_map.py    the table of runs whose columns are template variables
    variables.py  which variables an entity has for what belongs to it
    listing.py    what lies below a prefix, listed once, and globs over it
    finders.py    the six ways in which a config names its sources
    filters.py    `--filter-<type>-name` and `--exclude-<type>-name`
    plan.py       deposition > dataset > run > entities: what each source finds, by listings and headers alone
    table.py      a plan as a table for a person

A config may come from somebody else: templates reach nothing but the variables they name, globs never leave the source,
and what regular expressions are matched against is bounded in length. (Their own cost is not: one that backtracks
without end stops the plan, so read a stranger's config before running it.)

Carrying a plan out is `run.py`.
"""
