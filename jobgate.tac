from twisted.application.service import Application

from jobgate.service import from_environment

application = Application("jobgate")
from_environment().setServiceParent(application)
