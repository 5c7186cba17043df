[tool.alembic]
# Every option: https://alembic.sqlalchemy.org/en/latest/tutorial.html
# The database's URL and the logging are in alembic.ini.
script_location = "${script_location}"
prepend_sys_path = ["%(here)s"]

# Where the models are. The module must lead to all of them, the job classes too.
# target_metadata = "myapp.models:Base"
