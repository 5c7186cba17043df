# Every option: https://alembic.sqlalchemy.org/en/latest/tutorial.html

[alembic]
script_location = ${script_location}
prepend_sys_path = %(here)s
path_separator = os

# Where the models are. The module must lead to all of them, the job classes too.
# target_metadata = myapp.models:Base

# The database, unless the environment has DATABASE_URL. Write % as %%.
# sqlalchemy.url = postgresql+psycopg://user:password@localhost/database

[loggers]
keys = root,sqlalchemy,alembic

[handlers]
keys = console

[formatters]
keys = generic

[logger_root]
level = WARNING
handlers = console
qualname =

[logger_sqlalchemy]
level = WARNING
handlers =
qualname = sqlalchemy.engine

[logger_alembic]
level = INFO
handlers =
qualname = alembic

[handler_console]
class = StreamHandler
args = (sys.stderr,)
level = NOTSET
formatter = generic

[formatter_generic]
format = %(levelname)-5.5s [%(name)s] %(message)s
datefmt = %H:%M:%S
