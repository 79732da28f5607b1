from twisted.application.service import ServiceMaker

jobgate = ServiceMaker("jobgate", "jobgate.service", "Put slow programs behind HTTP.", "jobgate")
